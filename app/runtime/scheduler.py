"""Continuous batching: a bounded queue and one inference thread a model, without a timer.

While one batch runs, the next gathers. A step cheap enough runs inline on the event loop: two threads that alternate on
the interpreter lose more by it than a keystroke costs (training/LOG.md).
"""

import asyncio
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, TypeAlias, TypeVar

from app.bundle import Bundle
from app.errors import BundleError, DeadlineExceeded, NotReady, Overloaded
from app.runtime.onnx_session import Precision
from app.runtime.usage import REQUEST_USAGE, RequestUsage
from app.text import TOKENIZERS, Tokenizer, read_tokenizer

Payload = TypeVar("Payload", contravariant=True)
Example = TypeVar("Example")
Answer = TypeVar("Answer")
ObserveCache: TypeAlias = Callable[[int, int], None]

MAX_INLINE_BATCH = 16  # examples of an inline step, where the inference thread has a processor of its own
MAX_SHORT_STEPS = 8  # a run of five words takes five steps, a page as context eight

log = logging.getLogger(__name__)


class Predictor(Protocol[Payload, Example, Answer]):
    """A model behind the interface that evaluation and the server share.

    `prepare` validates one payload and raises for it alone. `predict` advances a batch by one scheduling step and
    cannot fail for one member. It returns per example the answer, or None for an example that needs another step: a
    long text read in chunks, the next word of a beam search, or no room in this step (the first example always has
    room). The caller composes the batch of the next step, so a short request never waits for a whole long one.
    """

    def prepare(self, payload: Payload) -> Example:
        """Validate one payload."""
        ...

    def predict(self, examples: Sequence[Example]) -> list[Answer | None]:
        """Run one step; return the answer to each example, or None."""
        ...


def ignore(hit: int, read: int) -> None:
    """An ObserveCache that does nothing."""


@dataclass(frozen=True)
class Resources:
    """Machine resources of a predictor; a family without recurrent states to cache ignores `cache_bytes`."""

    threads: int = 1  # of inference
    cache_bytes: int = 0  # of the state cache
    tokenizers: Mapping[str, type[Tokenizer]] = field(default_factory=lambda: TOKENIZERS)  # by name in manifests
    observe_cache: ObserveCache = ignore  # called after a step with the context tokens found in the cache and read

    def tokenizer(self, bundle: Bundle, size: int) -> Tokenizer:
        """Read a bundle's tokenizer of `size` tokens. Raise BundleError for another file than its manifest tells."""
        expected = bundle.manifest.vocabulary_sha256
        try:
            found = read_tokenizer(bundle.manifest.normalisation or "whitespace", bundle.text, self.tokenizers)
        except ValueError as error:
            raise BundleError(f"{bundle.folder}: {error}") from error
        path = bundle.path(found.FILE)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        if sha256 != expected:
            raise BundleError(f"{path}: expected the sha256 {expected}, found {sha256}")
        if len(found.strings) != size:
            raise BundleError(f"{path}: expected {size} tokens, found {len(found.strings)}")
        return found


class BundlePredictor(Predictor[Payload, Example, Answer], Protocol[Payload, Example, Answer]):
    """A predictor opened from a bundle and verified by the bundle's probe."""

    PROBE_TOLERANCE: ClassVar[float]  # of the probe's numbers: above processors' differences, below those of faults

    @property
    def precision(self) -> Precision:
        """The arithmetic of the graphs in use."""
        ...

    @property
    def fits_inline(self) -> Callable[[Sequence[Any]], bool] | None:
        """A function that returns whether one step over the batch is cheap enough to run inline on the event loop.

        None for a family whose steps never are.
        """
        ...

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, resources: Resources) -> Self:
        """Open the bundle's graphs of this precision. Raise BundleError if they can't be run."""
        ...

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """Return the answer to `payload`, the fields of one of the family's payloads, as [text, number] pairs."""
        ...


class Observer(Protocol):
    """A receiver of the scheduler's and the preprocessor's measurements, by model."""

    def observe_prepare(self, model: str, seconds: float) -> None:
        """Record the time that one example took to prepare in a thread, waiting included."""
        ...

    def observe_batch(self, model: str, size: int, seconds: float) -> None:
        """Record one step over `size` examples."""
        ...

    def observe_wait(self, model: str, seconds: float) -> None:
        """Record the time from an example's acceptance to its first step."""
        ...

    def set_queue(self, model: str, depth: int) -> None:
        """Record the queue depth, at the start of each step and when a queued example is cancelled."""
        ...

    def count_refusal(self, model: str, reason: str) -> None:
        """Count an example without an answer: `overloaded`, `deadline` or `cancelled`."""
        ...


@dataclass(eq=False, slots=True)
class _Job:
    """An accepted example and the future of its answer."""

    example: Any
    deadline: float | None
    accepted: float
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    account: RequestUsage | None  # of the HTTP request
    steps: int = 0
    cancelled: bool = False


Outcome: TypeAlias = tuple[_Job, Any, BaseException | None]  # an answer or an error


def _deliver(outcomes: Sequence[Outcome], running: asyncio.AbstractEventLoop | None) -> None:
    """Resolve the jobs' futures, all of one event loop in one call: waking a loop costs more than an answer.

    `running` is the event loop that runs in this thread, if one does.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        job = outcome[0]
        if not job.cancelled:  # the loop of a cancelled job may be closed
            by_loop.setdefault(job.loop, []).append(outcome)
    for loop, resolved in by_loop.items():
        if loop is running:
            _resolve(resolved)
        else:
            with suppress(RuntimeError):  # the loop is closed, so its futures are not awaited
                loop.call_soon_threadsafe(_resolve, resolved)


def _resolve(outcomes: Sequence[Outcome]) -> None:
    for job, answer, error in outcomes:
        if job.future.done():
            continue
        if error is None:
            job.future.set_result(answer)
        else:
            job.future.set_exception(error)


class Scheduler:
    """Batches the examples of concurrent requests for one predictor.

    The queue is bounded: beyond `queue_size` waiting examples, a new one raises Overloaded at once. A batch holds
    examples with few steps so far, in order, and long ones, oldest first. A keystroke therefore never waits for
    documents, and the first of many documents finishes before the last. Cancelled and expired examples are dropped
    before the next step.

    One step runs at a time: in the inference thread, or inline on the event loop of the first waiting example if the
    batch has at most `max_inline_batch` examples and `fits_inline` accepts it.
    """

    def __init__(
        self,
        name: str,
        predict: Callable[[Sequence[Any]], list[Any]],
        observer: Observer,
        *,
        queue_size: int,
        batch_size: int,
        fits_inline: Callable[[Sequence[Any]], bool] | None = None,
        max_inline_batch: int = MAX_INLINE_BATCH,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`predict` is that of a Predictor; without `fits_inline` (see BundlePredictor) no step runs inline."""
        self._name = name
        self._predict = predict
        self._fits_inline = fits_inline
        self._max_inline_batch = max_inline_batch
        self._observer = observer
        self._queue_size = queue_size
        self._batch_size = batch_size
        self._now = now
        self._short: list[_Job] = []  # fewer than MAX_SHORT_STEPS steps so far, in the order of their steps
        self._long: list[_Job] = []  # the others, oldest first
        self._polling: asyncio.AbstractEventLoop | None = None  # the loop in which `_poll` is scheduled
        self._busy = False  # a batch is taken and its step not finished
        self._handed_off: list[_Job] = []  # the batch that an event loop took and leaves to the thread
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"inference-{name}", daemon=True)
        self._thread.start()

    async def submit(self, example: Any, deadline: float | None = None) -> Any:
        """Return the answer to `example`. `deadline` is a time of the clock `now`.

        Raise Overloaded if the queue is full, NotReady after `close`, DeadlineExceeded once the deadline has passed.
        """
        loop = asyncio.get_running_loop()
        job = _Job(example, deadline, self._now(), loop.create_future(), loop, REQUEST_USAGE.get())
        self._accept(job)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._cancel(job)
            raise

    @property
    def depth(self) -> int:
        """The number of queued examples."""
        return len(self._short) + len(self._long)

    async def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _accept(self, job: _Job) -> None:
        with self._changed:
            if self._closing:
                raise NotReady(f"{self._name}: is shutting down")
            if self.depth >= self._queue_size:
                self._observer.count_refusal(self._name, "overloaded")
                raise Overloaded(f"{self._name}: the queue is full with {self.depth} requests; retry later")
            if job.account:
                job.account.accept(job.accepted)
            self._short.append(job)
            if self._fits_inline is None:
                self._changed.notify()
            elif not self._busy:
                self._schedule_poll(job.loop)

    def _cancel(self, job: _Job) -> None:
        """Remove a cancelled job from the queue; one that is in the running step is dropped after it."""
        self._observer.count_refusal(self._name, "cancelled")
        with self._changed:
            job.cancelled = True
            for queue in (self._short, self._long):
                if job in queue:
                    queue.remove(job)
            self._observer.set_queue(self._name, self.depth)

    def _schedule_poll(self, loop: asyncio.AbstractEventLoop) -> None:
        """Schedule `_poll` on the running event loop. The caller holds the lock.

        Jobs of several loops go to the thread: a loop may end before it polls.
        """
        if self._polling is loop or not self.depth:
            return
        if self._polling or any(job.loop is not loop for job in (*self._short, *self._long)):
            self._changed.notify()
        else:
            self._polling = loop
            loop.call_soon(self._poll, loop, 0)

    def _poll(self, loop: asyncio.AbstractEventLoop, seen: int) -> None:
        """Run a step on the event loop, or hand it off, once the queue has grown no further than the `seen` depth."""
        with self._changed:
            if not self._busy and seen < self.depth < self._max_inline_batch:
                loop.call_soon(self._poll, loop, self.depth)
                return
            self._polling = None
            batch = [] if self._busy else self._take()
        if batch:
            self._step(batch, loop)

    def _run(self) -> None:
        while batch := self._gather():
            self._step(batch)

    def _step(self, batch: Sequence[_Job], running: asyncio.AbstractEventLoop | None = None) -> None:
        """Run one step over the batch, in the inference thread or inline on the `running` event loop."""
        examples = [job.example for job in batch]
        try:
            fits = self._fits_inline
            if running and not (fits and len(examples) <= self._max_inline_batch and fits(examples)):
                with self._changed:
                    self._handed_off = [*batch]
                    self._changed.notify()
                return
            self._count_steps(batch)
            started = self._now()
            answers = list(zip(batch, self._predict(examples), strict=True))
            self._observe_step(batch, started, self._now())
        except Exception as error:
            log.exception("%s: a batch of %d failed", self._name, len(batch))
            _deliver([(job, None, error) for job in batch], running)
            self._finish([], running)
            return
        _deliver([(job, answer, None) for job, answer in answers if answer is not None], running)
        self._finish([job for job, answer in answers if answer is None], running)

    def _finish(self, unfinished: Sequence[_Job], running: asyncio.AbstractEventLoop | None) -> None:
        """End a step: queue the unfinished jobs again and start the next step."""
        with self._changed:
            self._busy = False
            kept = [job for job in unfinished if not job.cancelled]
            self._short += [job for job in kept if job.steps < MAX_SHORT_STEPS]
            self._long += [job for job in kept if job.steps >= MAX_SHORT_STEPS]
            self._long.sort(key=lambda job: job.accepted)
            if running and not kept and not self._closing:
                self._schedule_poll(running)
            else:
                self._changed.notify()

    def _count_steps(self, batch: Sequence[_Job]) -> None:
        """Count a step of each job; record the waiting time of those in their first."""
        for job in batch:
            if not job.steps:
                self._observer.observe_wait(self._name, self._now() - job.accepted)
            job.steps += 1

    def _observe_step(self, batch: Sequence[_Job], started: float, ended: float) -> None:
        self._observer.observe_batch(self._name, len(batch), ended - started)
        for account in {job.account for job in batch if job.account}:
            account.record_step(started, ended)

    def _gather(self) -> list[_Job]:
        """Wait for the thread's next batch; empty once closed and finished."""
        with self._changed:
            while True:
                if batch := self._handed_off or ([] if self._busy else self._take()):
                    self._handed_off = []
                    return batch
                if self._closing and not self.depth and not self._busy:
                    return []
                self._changed.wait()

    def _take(self) -> list[_Job]:
        """Take the next batch from the queue; empty if none is left. The caller holds the lock."""
        self._drop_expired()
        batch = self._next_batch()
        self._busy = bool(batch)
        self._observer.set_queue(self._name, self.depth)
        return batch

    def _next_batch(self) -> list[_Job]:
        """Remove a batch from the queue: at most half of it short jobs while long ones fill the rest.

        The oldest long job comes first, then the short ones: a predictor may defer the last to the next step.
        """
        room = self._batch_size
        short = min(len(self._short), max(room // 2, room - len(self._long)))
        batch = [*self._long[:1], *self._short[:short], *self._long[1 : room - short]]
        self._long, self._short = self._long[room - short :], self._short[short:]
        return batch

    def _drop_expired(self) -> None:
        """Fail queued jobs whose deadline has passed."""
        waiting = (*self._short, *self._long)
        expired = {job for job in waiting if job.deadline is not None and job.deadline < self._now()}
        if not expired:
            return
        self._short = [job for job in self._short if job not in expired]
        self._long = [job for job in self._long if job not in expired]
        for _ in expired:
            self._observer.count_refusal(self._name, "deadline")
        error = f"{self._name}: the deadline passed before the answer was ready"
        _deliver([(job, None, DeadlineExceeded(error)) for job in expired], None)


def answer_all(predictor: Predictor[Any, Any, Any], examples: Sequence[Any]) -> list[Any]:
    """Run steps over all examples together until each has its answer, as evaluation and the command line do."""
    answers: dict[int, Any] = {}
    waiting = list(range(len(examples)))
    while waiting:
        found = predictor.predict([examples[index] for index in waiting])
        answers.update({index: answer for index, answer in zip(waiting, found, strict=True) if answer is not None})
        waiting = [index for index in waiting if index not in answers]
    return [answers[index] for index in range(len(examples))]
