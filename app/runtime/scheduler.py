"""A bounded queue before each model, without a timer: while one batch runs, the next gathers.

A model has an inference thread. A light turn the event loop gives itself: two threads that want the interpreter in
turns lose more by it than a keystroke costs (training/LOG.md).
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeAlias, TypeVar

from app.bundle import Bundle
from app.errors import DeadlineExceeded, NotReady, Overloaded
from app.runtime.onnx_session import Precision
from app.runtime.usage import REQUEST_USAGE, RequestUsage

Payload = TypeVar("Payload", contravariant=True)
Example = TypeVar("Example")
Answer = TypeVar("Answer")
ObserveCache: TypeAlias = Callable[[int, int], None]

FEW = 16  # examples that an event loop gives a light turn, where the thread has a processor of its own
SHORT = 8  # turns: a run of five words takes five, a page as context eight

log = logging.getLogger(__name__)


class Predictor(Protocol[Payload, Example, Answer]):
    """What a model family does: the same object in evaluation and in the server.

    `prepare` validates one payload and raises for it alone. `predict` takes a batch, cannot fail for one member, and
    tells of each example its answer, or None if it wants another turn (a long text read in chunks, the next step of a
    beam, or no room in this turn; the first always has some). Whoever calls decides what shares the next turn, so
    nobody waits for another's whole request.
    """

    def prepare(self, payload: Payload) -> Example:
        """Check one payload."""
        ...

    def predict(self, examples: Sequence[Example]) -> list[Answer | None]:
        """One turn: of each example its answer, or None."""
        ...


def ignore(hit: int, read: int) -> None:
    """An ObserveCache for those who don't care."""


@dataclass(frozen=True)
class Resources:
    """What a predictor may use of the machine; a family without states to remember leaves the cache alone."""

    threads: int = 1  # of inference
    cache_bytes: int = 0  # of remembered states
    observe_cache: ObserveCache = ignore  # told of a turn's contexts how many tokens were remembered, how many read


class BundlePredictor(Predictor[Payload, Example, Answer], Protocol[Payload, Example, Answer]):
    """A predictor that a bundle is opened as, and that its probe proves."""

    PROBE_TOLERANCE: ClassVar[float]  # of a probe's numbers: more than processors differ by, less than a fault moves

    @property
    def precision(self) -> Precision:
        """The arithmetic that answers."""
        ...

    @property
    def is_light(self) -> Callable[[Sequence[Any]], bool] | None:
        """Tells of examples whether a turn of all is over so soon that an event loop may give it itself.

        None of a family whose turns never are.
        """
        ...

    @classmethod
    def open(cls, bundle: Bundle, precision: Precision, resources: Resources) -> Self:
        """The predictor of a bundle, on its graphs of this precision. Raise BundleError if they can't be run."""
        ...

    def probe(self, payload: dict[str, Any]) -> list[list[Any]]:
        """The answer to `payload`, the fields of one of the family's payloads, as [text, number] pairs."""
        ...


class Observer(Protocol):
    """Is told what the batcher of `model` does, and what was done before it."""

    def observe_prepare(self, model: str, seconds: float) -> None:
        """An example was prepared in a thread, in so long."""
        ...

    def observe_batch(self, model: str, size: int, seconds: float) -> None:
        """A turn was given to `size` examples."""
        ...

    def observe_wait(self, model: str, seconds: float) -> None:
        """An example had waited so long for its first turn."""
        ...

    def set_queue(self, model: str, depth: int) -> None:
        """So many examples wait for a turn; told when one begins, or one who waited has left."""
        ...

    def count_refusal(self, model: str, reason: str) -> None:
        """An example got no answer: `overloaded`, `deadline` or `cancelled`."""
        ...


@dataclass(eq=False, slots=True)
class _Ticket:
    """An accepted example and the caller who waits for it."""

    example: Any
    deadline: float | None
    accepted: float
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    account: RequestUsage | None  # of the request that it belongs to
    turns: int = 0
    abandoned: bool = False  # the caller left

    def settle(self, answer: Any, error: BaseException | None) -> None:
        """Tell the caller, in its loop."""
        if self.future.done():
            return
        if error is None:
            self.future.set_result(answer)
        else:
            self.future.set_exception(error)


Outcome: TypeAlias = tuple[_Ticket, Any, BaseException | None]  # an answer or an error


def _settle(outcomes: Sequence[Outcome], here: asyncio.AbstractEventLoop | None) -> None:
    """Tell all callers, each loop's at once: to wake a loop costs more than an answer. `here` is the loop that runs."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        ticket = outcome[0]
        if not ticket.abandoned:  # else the loop may be closed
            by_loop.setdefault(ticket.loop, []).append(outcome)
    for loop, told in by_loop.items():
        if loop is here:
            _tell(told)
        else:
            with suppress(RuntimeError):  # it is closed: nobody is left to be told
                loop.call_soon_threadsafe(_tell, told)


def _tell(outcomes: Sequence[Outcome]) -> None:
    for ticket, answer, error in outcomes:
        ticket.settle(answer, error)


class Batcher:
    """Feeds a predictor from many callers.

    While `queue_size` examples wait for a turn, their first or another, one more is refused at once. A batch is made of
    examples that have had few turns, in order, and of the long ones, the oldest first: so a keystroke does not wait for
    documents, and of many documents the first are finished before the last, instead of all at once and too late. A
    caller that left, or whose deadline passed, is dropped before the next turn.

    One turn at a time is given: by the inference thread, or, to no more than `light_size` examples and where it is
    light, by the event loop of the first that waits.
    """

    def __init__(
        self,
        name: str,
        predict: Callable[[Sequence[Any]], list[Any]],
        observer: Observer,
        *,
        queue_size: int,
        batch_size: int,
        is_light: Callable[[Sequence[Any]], bool] | None = None,
        light_size: int = FEW,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`predict` is a Predictor's; without `is_light` (see BundlePredictor) no turn is light."""
        self._name = name
        self._predict = predict
        self._is_light = is_light
        self._light_size = light_size
        self._observer = observer
        self._queue_size = queue_size
        self._batch_size = batch_size
        self._now = now
        self._short: list[_Ticket] = []  # so far, in the order of their turns
        self._long: list[_Ticket] = []  # had SHORT turns and want another, oldest first
        self._called: asyncio.AbstractEventLoop | None = None  # the loop that is about to look at what waits
        self._busy = False  # a batch has its turn, or is about to
        self._handed: list[_Ticket] = []  # the batch that an event loop took and leaves to the thread
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"inference-{name}", daemon=True)
        self._thread.start()

    async def submit(self, example: Any, deadline: float | None = None) -> Any:
        """The answer to `example`. `deadline` is a time of the batcher's clock.

        Raise Overloaded if the queue is full, NotReady if it is closed, DeadlineExceeded if the deadline passes first.
        """
        loop = asyncio.get_running_loop()
        ticket = _Ticket(example, deadline, self._now(), loop.create_future(), loop, REQUEST_USAGE.get())
        self._accept(ticket)
        try:
            return await ticket.future
        except asyncio.CancelledError:
            self._leave(ticket)
            raise

    @property
    def depth(self) -> int:
        """How many examples wait for a turn."""
        return len(self._short) + len(self._long)

    async def close(self) -> None:
        """Accept nothing more, finish what was accepted, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def _accept(self, ticket: _Ticket) -> None:
        with self._changed:
            if self._closing:
                raise NotReady(f"{self._name}: is shutting down")
            if self.depth >= self._queue_size:
                self._observer.count_refusal(self._name, "overloaded")
                raise Overloaded(f"{self._name}: {self.depth} requests wait already; try again soon")
            if ticket.account:
                ticket.account.accept(ticket.accepted)
            self._short.append(ticket)
            if self._is_light is None:
                self._changed.notify()
            elif not self._busy:
                self._call(ticket.loop)

    def _leave(self, ticket: _Ticket) -> None:
        """Give the place of a caller who left to others, unless it is having its turn."""
        self._observer.count_refusal(self._name, "cancelled")
        with self._changed:
            ticket.abandoned = True
            for queue in (self._short, self._long):
                if ticket in queue:
                    queue.remove(ticket)
            self._observer.set_queue(self._name, self.depth)

    def _call(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have the event loop that runs look at what waits. For who holds the lock.

        What another loop waits for is the thread's: a loop may end before it looks.
        """
        if self._called is loop or not self.depth:
            return
        if self._called or any(ticket.loop is not loop for ticket in (*self._short, *self._long)):
            self._changed.notify()
        else:
            self._called = loop
            loop.call_soon(self._look, loop, 0)

    def _look(self, loop: asyncio.AbstractEventLoop, seen: int) -> None:
        """In an event loop, once no more wait than were `seen`: give these their turn, or leave that to the thread."""
        with self._changed:
            if not self._busy and seen < self.depth < self._light_size:
                loop.call_soon(self._look, loop, self.depth)
                return
            self._called = None
            batch = [] if self._busy else self._take()
        if batch:
            self._turn(batch, loop)

    def _run(self) -> None:
        while batch := self._gather():
            self._turn(batch)

    def _turn(self, batch: Sequence[_Ticket], here: asyncio.AbstractEventLoop | None = None) -> None:
        """Give a batch its turn, if it may be given where we are: in the event loop `here`, or in the thread."""
        examples = [ticket.example for ticket in batch]
        try:
            if here and not self._may_be_given_here(examples):
                self._hand(batch)
                return
            self._begin(batch)
            started = self._now()
            turns = list(zip(batch, self._predict(examples), strict=True))
            self._account(batch, started, self._now())
        except Exception as error:
            log.exception("%s: a batch of %d failed", self._name, len(batch))
            _settle([(ticket, None, error) for ticket in batch], here)
            self._end([], here)
            return
        _settle([(ticket, answer, None) for ticket, answer in turns if answer is not None], here)
        self._end([ticket for ticket, answer in turns if answer is None], here)

    def _may_be_given_here(self, examples: Sequence[Any]) -> bool:
        return len(examples) <= self._light_size and self._is_light is not None and self._is_light(examples)

    def _hand(self, batch: Sequence[_Ticket]) -> None:
        with self._changed:
            self._handed = [*batch]
            self._changed.notify()

    def _end(self, unfinished: Sequence[_Ticket], here: asyncio.AbstractEventLoop | None) -> None:
        """A turn is over; some want another."""
        with self._changed:
            self._busy = False
            kept = [ticket for ticket in unfinished if not ticket.abandoned]
            self._short += [ticket for ticket in kept if ticket.turns < SHORT]
            self._long += [ticket for ticket in kept if ticket.turns >= SHORT]
            self._long.sort(key=lambda ticket: ticket.accepted)
            if here and not kept and not self._closing:
                self._call(here)
            else:
                self._changed.notify()

    def _begin(self, batch: Sequence[_Ticket]) -> None:
        """Count a turn of each, and tell how long those have waited who have their first."""
        for ticket in batch:
            if not ticket.turns:
                self._observer.observe_wait(self._name, self._now() - ticket.accepted)
            ticket.turns += 1

    def _account(self, batch: Sequence[_Ticket], started: float, ended: float) -> None:
        """Tell what a turn took."""
        self._observer.observe_batch(self._name, len(batch), ended - started)
        for account in {ticket.account for ticket in batch if ticket.account}:
            account.record_step(started, ended)

    def _gather(self) -> list[_Ticket]:
        """The next batch for the thread; waits for one; empty when closed and all is done."""
        with self._changed:
            while True:
                if batch := self._handed or ([] if self._busy else self._take()):
                    self._handed = []
                    return batch
                if self._closing and not self.depth and not self._busy:
                    return []
                self._changed.wait()

    def _take(self) -> list[_Ticket]:
        """Begin a turn with the next batch; empty if nothing waits any more. For who holds the lock."""
        self._drop_late()
        batch = self._next()
        self._busy = bool(batch)
        self._observer.set_queue(self._name, self.depth)
        return batch

    def _next(self) -> list[_Ticket]:
        """Take a batch's worth: short ones half of it at most while there are long ones to have the rest.

        The oldest long one stands first, then the short ones: a predictor may leave the last for the next turn.
        """
        room = self._batch_size
        short = min(len(self._short), max(room // 2, room - len(self._long)))
        batch = [*self._long[:1], *self._short[:short], *self._long[1 : room - short]]
        self._long, self._short = self._long[room - short :], self._short[short:]
        return batch

    def _drop_late(self) -> None:
        """Refuse those whose deadline has passed."""
        waiting = (*self._short, *self._long)
        late = {ticket for ticket in waiting if ticket.deadline is not None and ticket.deadline < self._now()}
        if not late:
            return
        self._short = [ticket for ticket in self._short if ticket not in late]
        self._long = [ticket for ticket in self._long if ticket not in late]
        for _ in late:
            self._observer.count_refusal(self._name, "deadline")
        error = f"{self._name}: the deadline passed before the answer was ready"
        _settle([(ticket, None, DeadlineExceeded(error)) for ticket in late], None)


def answer_all(predictor: Predictor[Any, Any, Any], examples: Sequence[Any]) -> list[Any]:
    """Give all examples turns together until each has its answer: what evaluation and the command line do."""
    answers: dict[int, Any] = {}
    waiting = list(range(len(examples)))
    while waiting:
        turn = predictor.predict([examples[place] for place in waiting])
        answers.update({place: answer for place, answer in zip(waiting, turn, strict=True) if answer is not None})
        waiting = [place for place in waiting if place not in answers]
    return [answers[place] for place in range(len(examples))]
