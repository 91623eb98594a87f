"""Continuous batching: a bounded queue and one inference thread a model, without a timer.

While one batch runs, the next gathers. A step cheap enough runs inline on the event loop: two threads that alternate on
the interpreter lose more by it than a keystroke costs (training/LOG.md).
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeAlias

from app.errors import DeadlineExceeded, NotReady, Overloaded
from app.runtime.metrics import REQUEST_USAGE
from app.runtime.predictor import Partial
from app.runtime.queueing import MAX_UNREAD, Job, JobQueue

MAX_INLINE_BATCH = 16  # examples of an inline step, where the inference thread has a processor of its own

log = logging.getLogger(__name__)


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


Outcome: TypeAlias = tuple[Job, Any]  # an answer, a partial answer or an error


def _deliver(outcomes: Sequence[Outcome], running: asyncio.AbstractEventLoop | None) -> None:
    """Resolve the jobs, all of one event loop in one call: waking a loop costs more than an answer.

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
            with suppress(RuntimeError):  # the loop is closed, so nothing awaits its jobs
                loop.call_soon_threadsafe(_resolve, resolved)


def _resolve(outcomes: Sequence[Outcome]) -> None:
    for job, output in outcomes:
        job.resolve(output)


class Scheduler:
    """Batches the examples of concurrent requests for one predictor.

    The queue is bounded, with a bound and steps of their own for interactive and for bulk examples (see JobQueue):
    beyond `queue_size` waiting examples of its kind, a new one raises Overloaded at once. Cancelled and expired
    examples are dropped before the next step.

    One step runs at a time: in the inference thread, or inline on the event loop of the first waiting example if the
    batch has at most `max_inline_batch` examples and `fits_inline` accepts it. A stream stays on the event loop while
    its steps run inline, so that a partial answer costs no change of threads; those of one step in the thread wake
    each event loop once.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[Sequence[Any]], Sequence[Any]],
        observer: Observer,
        *,
        queue_size: int,
        batch_size: int,
        fits_inline: Callable[[Sequence[Any]], bool] | None = None,
        max_inline_batch: int = MAX_INLINE_BATCH,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`step` is that of a Predictor; without `fits_inline` (see BundlePredictor) no step runs inline."""
        self._name = name
        self._predict = step
        self._fits_inline = fits_inline
        self._max_inline_batch = max_inline_batch
        self._observer = observer
        self._batch_size = batch_size
        self._now = now
        self._queue = JobQueue(queue_size)
        self._polling: asyncio.AbstractEventLoop | None = None  # the loop in which `_poll` is scheduled
        self._busy = False  # a batch is taken and its step not finished
        self._handed_off: list[Job] = []  # the batch that an event loop took and leaves to the thread
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"inference-{name}", daemon=True)
        self._thread.start()

    async def submit(self, example: Any, deadline: float | None = None, *, bulk: bool = False) -> Any:
        """Return the answer to `example`. `deadline` is a time of the clock `now`.

        Raise Overloaded if the queue is full, NotReady after `close`, DeadlineExceeded once the deadline has passed.
        """
        job = self._accept(example, deadline, bulk=bulk, streamed=False)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._cancel(job)
            raise

    async def stream(
        self, example: Any, deadline: float | None = None, *, bulk: bool = False
    ) -> AsyncGenerator[Partial[Any, Any], None]:
        """Yield the partial answers to `example`, each as soon as its step has run; the last one holds the answer.

        Raise as `submit` does. Closing the generator, or cancelling its task, drops the example before its next step.
        An example with MAX_UNREAD partial answers that its client has not read gets no step until it reads one.
        """
        job = self._accept(example, deadline, bulk=bulk, streamed=True)
        assert job.stream
        finished = False
        try:
            while not finished:
                output = await job.stream.get()
                job.read += 1
                if job.unread >= MAX_UNREAD - 1:  # it may have got no step before
                    with self._changed:
                        self._wake(job.loop)
                if isinstance(output, BaseException):
                    finished = True
                    raise output
                finished = output.answer is not None
                yield output
        finally:
            if not finished:
                self._cancel(job)

    @property
    def depth(self) -> int:
        """The number of queued examples."""
        return len(self._queue)

    async def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _accept(self, example: Any, deadline: float | None, *, bulk: bool, streamed: bool) -> Job:
        """Queue an example of the running event loop."""
        loop = asyncio.get_running_loop()
        stream = asyncio.Queue[Any]() if streamed else None
        usage = REQUEST_USAGE.get()
        job = Job(example, deadline, bulk, self._now(), loop, usage, loop.create_future(), stream)
        with self._changed:
            if self._closing:
                raise NotReady(f"{self._name}: is shutting down")
            if self._queue.is_full(bulk=bulk):
                self._observer.count_refusal(self._name, "overloaded")
                waiting = self._queue.waiting(bulk=bulk)
                raise Overloaded(f"{self._name}: the queue is full with {waiting} requests; retry later")
            if usage:
                usage.accept(job.accepted)
            self._queue.add((job,))
            self._wake(loop)
        return job

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the next step unless one runs. The caller holds the lock."""
        if self._fits_inline is None:
            self._changed.notify()
        elif not self._busy:
            self._schedule_poll(loop)

    def _cancel(self, job: Job) -> None:
        """Remove a cancelled job from the queue; one that is in the running step is dropped after it."""
        self._observer.count_refusal(self._name, "cancelled")
        with self._changed:
            job.cancelled = True
            self._queue.remove((job,))
            self._observer.set_queue(self._name, len(self._queue))

    def _schedule_poll(self, loop: asyncio.AbstractEventLoop) -> None:
        """Schedule `_poll` on the running event loop. The caller holds the lock.

        Jobs of several loops go to the thread: a loop may end before it polls.
        """
        if self._polling is loop or not len(self._queue):
            return
        if self._polling or any(job.loop is not loop for job in self._queue):
            self._changed.notify()
        else:
            self._polling = loop
            loop.call_soon(self._poll, loop, 0)

    def _poll(self, loop: asyncio.AbstractEventLoop, seen: int) -> None:
        """Run a step on the event loop, or hand it off, once the queue has grown no further than the `seen` depth."""
        with self._changed:
            depth = len(self._queue)
            if not self._busy and seen < depth < self._max_inline_batch:
                loop.call_soon(self._poll, loop, depth)
                return
            self._polling = None
            batch = [] if self._busy else self._take()
        if batch:
            self._step(batch, loop)

    def _run(self) -> None:
        while batch := self._gather():
            self._step(batch)

    def _step(self, batch: Sequence[Job], running: asyncio.AbstractEventLoop | None = None) -> None:
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
            outputs = list(zip(batch, self._predict(examples), strict=True))
            finished = self._now()
            self._observer.observe_batch(self._name, len(batch), finished - started)
            for usage in {job.usage for job in batch if job.usage}:
                usage.record_step(started, finished)
        except Exception as error:
            log.exception("%s: a batch of %d failed", self._name, len(batch))
            self._finish([(job, error) for job in batch], [], running)
        else:
            answers = [output.answer if isinstance(output, Partial) else output for _, output in outputs]
            unfinished = [job for (job, _), answer in zip(outputs, answers, strict=True) if answer is None]
            self._finish(_outcomes(outputs, answers), unfinished, running)

    def _finish(
        self, outcomes: Sequence[Outcome], unfinished: Sequence[Job], running: asyncio.AbstractEventLoop | None
    ) -> None:
        """End a step: deliver its outcomes, queue the unfinished jobs again and start the next step."""
        with self._changed:  # a client that answers an outcome at once finds the step ended
            _deliver(outcomes, running)
            self._busy = False
            kept = [job for job in unfinished if not job.cancelled]
            self._queue.add(kept)
            if running and not self._closing and all(job.stream is not None for job in kept):
                self._schedule_poll(running)
            else:
                self._changed.notify()

    def _count_steps(self, batch: Sequence[Job]) -> None:
        """Count a step of each job; record the waiting time of those in their first."""
        for job in batch:
            if not job.steps:
                self._observer.observe_wait(self._name, self._now() - job.accepted)
            job.steps += 1

    def _gather(self) -> list[Job]:
        """Wait for the thread's next batch; empty once closed and finished."""
        with self._changed:
            while True:
                if batch := self._handed_off or ([] if self._busy else self._take()):
                    self._handed_off = []
                    return batch
                if self._closing and not self.depth and not self._busy:
                    return []
                self._changed.wait()

    def _take(self) -> list[Job]:
        """Take the next batch from the queue; empty if none can take a step. The caller holds the lock."""
        self._drop_expired()
        batch = self._queue.take(self._batch_size, blocked=self._closing)
        self._busy = bool(batch)
        self._observer.set_queue(self._name, len(self._queue))
        return batch

    def _drop_expired(self) -> None:
        """Fail queued jobs whose deadline has passed."""
        expired = [job for job in self._queue if job.deadline is not None and job.deadline < self._now()]
        if not expired:
            return
        self._queue.remove(expired)
        for _ in expired:
            self._observer.count_refusal(self._name, "deadline")
        error = f"{self._name}: the deadline passed before the answer was ready"
        _deliver([(job, DeadlineExceeded(error)) for job in expired], None)


def _outcomes(outputs: Sequence[tuple[Job, Any]], answers: Sequence[Any]) -> list[Outcome]:
    """Return what each job is to get of a step's outputs: its answer, or for a stream each partial answer."""
    found = list[Outcome]()
    for (job, output), answer in zip(outputs, answers, strict=True):
        if job.stream is not None and output is not None:
            job.sent += 1
            found.append((job, output if isinstance(output, Partial) else Partial((), answer)))
        elif answer is not None:
            found.append((job, answer))
    return found
