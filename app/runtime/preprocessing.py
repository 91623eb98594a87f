"""A few threads for the payloads that take long to check, beside the event loop and the inference threads."""

import asyncio
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from app.errors import DeadlineExceeded, NotReady, Overloaded
from app.runtime.scheduler import Observer

Example = TypeVar("Example")

NICE: Final = 5  # of the threads: whoever types goes before, and what is left of the processors is theirs
THREADS: Final = 2  # a picture of 25 megapixels takes up to 500 MB while it is decoded, and a core


@dataclass(eq=False)
class _Work:
    """What a caller wants done, and where the outcome goes."""

    prepare: Callable[[], Any]
    outcome: Future[Any] = field(default_factory=Future)

    def do(self) -> None:
        """Nothing, if nobody waits for it any more."""
        if not self.outcome.set_running_or_notify_cancel():
            return
        try:
            self.outcome.set_result(self.prepare())
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is the caller's
            self.outcome.set_exception(error)


class Preparing:
    """Prepares for all models, THREADS payloads at once; no more than `queue_size` others wait.

    A model's payloads come in their order. The models that have some take turns, whoever has how many: one's digits
    don't wait for all of another's photographs.
    """

    def __init__(self, observer: Observer, *, queue_size: int, now: Callable[[], float] = time.monotonic) -> None:
        self._observer = observer
        self._room = queue_size + THREADS
        self._now = now
        self._closing = False
        self._waiting: dict[str, deque[_Work]] = {}  # by model, the next one first; none is empty
        self._waiting_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "preparing", _give_way)

    async def run(self, model: str, prepare: Callable[[], Example], deadline: float | None = None) -> Example:
        """What `prepare` returns or raises, in a thread. `deadline` is a time of the clock `now`.

        Raise Overloaded if too many wait, NotReady if it is closed, DeadlineExceeded if the deadline passes first. What
        nobody waits for any more is not begun.
        """
        self._accept(model)
        accepted = self._now()
        try:
            async with asyncio.timeout(None if deadline is None else deadline - accepted):
                example: Example = await asyncio.wrap_future(self._begin(model, prepare))
            self._observer.observe_prepare(model, self._now() - accepted)
            return example
        except TimeoutError as error:
            self._observer.count_refusal(model, "deadline")
            raise DeadlineExceeded(f"{model}: the deadline passed before the answer was begun") from error
        except asyncio.CancelledError:
            self._observer.count_refusal(model, "cancelled")
            raise
        finally:
            self._room += 1

    async def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the threads."""
        self._closing = True
        await asyncio.to_thread(self._threads.shutdown)

    def _accept(self, model: str) -> None:
        if self._closing:
            raise NotReady(f"{model}: is shutting down")
        if not self._room:
            self._observer.count_refusal(model, "overloaded")
            raise Overloaded(f"{model}: too many requests wait to be read; try again soon")
        self._room -= 1

    def _begin(self, model: str, prepare: Callable[[], Example]) -> Future[Example]:
        work = _Work(prepare)
        with self._waiting_lock:
            self._waiting.setdefault(model, deque()).append(work)
        self._threads.submit(self._take_turn)  # as many turns as there is work; whose is known when one begins
        return work.outcome

    def _take_turn(self) -> None:
        with self._waiting_lock:
            model = next(iter(self._waiting))
            queue = self._waiting.pop(model)
            work = queue.popleft()
            if queue:
                self._waiting[model] = queue  # the last now
        work.do()


def _give_way() -> None:
    """Let other threads go before this one, where the system knows a priority of threads."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICE)
