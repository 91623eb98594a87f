"""A small thread pool that prepares slow payloads, beside the event loop and the inference threads."""

import asyncio
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

from app.errors import DeadlineExceeded, NotReady, Overloaded
from app.runtime.scheduler import Observer

Example = TypeVar("Example")

NICE: Final = 5  # added to the threads' niceness: interactive requests have priority
THREADS: Final = 2  # an image of 25 megapixels takes a core and up to 500 MB while it is decoded


class Payload(Protocol):
    """The input of one request to a model."""

    @property
    def slow(self) -> bool:
        """True if `prepare` takes so long that it must run in a thread."""
        ...

    @property
    def bulk(self) -> bool:
        """True for a document: no person waits for it."""
        ...


@dataclass(eq=False)
class _Work:
    """A function to run and the future of its result."""

    prepare: Callable[[], Any]
    outcome: Future[Any] = field(default_factory=Future)

    def run(self) -> None:
        """Run the function unless its future was cancelled."""
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            self.outcome.set_result(self.prepare())
        except BaseException as error:  # noqa: BLE001  # raised again where the future is awaited
            self.outcome.set_exception(error)


class Preprocessor:
    """A bounded queue of payloads to prepare, for all models: THREADS at once, at most `queue_size` waiting.

    Interactive payloads and bulk ones (documents, several images) have that bound each, so that no number of bulk ones
    makes an interactive one rejected. Each model's payloads of one kind are prepared in order; models and kinds are
    served round-robin, so that a digit waits neither for all photographs nor for all of 32 digits.
    """

    def __init__(self, observer: Observer, *, queue_size: int, now: Callable[[], float] = time.monotonic) -> None:
        self._observer = observer
        self._room = dict.fromkeys((False, True), queue_size + THREADS)  # by bulk
        self._now = now
        self._closing = False
        self._waiting: dict[tuple[str, bool], deque[_Work]] = {}  # by model and bulk, the next first; none is empty
        self._waiting_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "preprocessing", _lower_priority)

    async def run(
        self, model: str, prepare: Callable[[], Example], deadline: float | None = None, *, bulk: bool = False
    ) -> Example:
        """Run `prepare` in a thread and return its result. `deadline` is a time of the clock `now`.

        Raise its error, Overloaded if the queue is full, NotReady after `close`, or DeadlineExceeded once the deadline
        has passed. A payload that is cancelled or expires in the queue is not prepared.
        """
        self._accept(model, bulk=bulk)
        accepted = self._now()
        try:
            async with asyncio.timeout(None if deadline is None else deadline - accepted):
                example: Example = await asyncio.wrap_future(self._enqueue((model, bulk), prepare))
            self._observer.observe_prepare(model, self._now() - accepted)
            return example
        except TimeoutError as error:
            self._observer.count_refusal(model, "deadline")
            raise DeadlineExceeded(f"{model}: the deadline passed before the input was prepared") from error
        except asyncio.CancelledError:
            self._observer.count_refusal(model, "cancelled")
            raise
        finally:
            self._room[bulk] += 1

    async def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the threads."""
        self._closing = True
        await asyncio.to_thread(self._threads.shutdown)

    def _accept(self, model: str, *, bulk: bool) -> None:
        if self._closing:
            raise NotReady(f"{model}: is shutting down")
        if not self._room[bulk]:
            self._observer.count_refusal(model, "overloaded")
            raise Overloaded(f"{model}: the preprocessing queue is full; retry later")
        self._room[bulk] -= 1

    def _enqueue(self, kind: tuple[str, bool], prepare: Callable[[], Example]) -> Future[Example]:
        work = _Work(prepare)
        with self._waiting_lock:
            self._waiting.setdefault(kind, deque()).append(work)
        self._threads.submit(self._run_next)  # once per payload; which one, is decided when a thread is free
        return work.outcome

    def _run_next(self) -> None:
        with self._waiting_lock:
            kind = next(iter(self._waiting))
            queue = self._waiting.pop(kind)
            work = queue.popleft()
            if queue:
                self._waiting[kind] = queue  # now the last
        work.run()


def _lower_priority() -> None:
    """Lower the calling thread's priority, on systems with per-thread priorities."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICE)
