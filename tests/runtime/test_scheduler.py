import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from app.errors import DeadlineExceeded, NotReady, Overloaded
from app.runtime.scheduler import Batcher, answer_all
from app.runtime.usage import REQUEST_USAGE, RequestUsage

pytestmark = pytest.mark.anyio

PATIENCE = 30  # seconds until a hung test fails


class Recorder:
    """An Observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.waits: list[float] = []
        self.depths: list[int] = []
        self.refusals: list[str] = []

    def observe_prepare(self, _model: str, _seconds: float) -> None: ...

    def observe_batch(self, _model: str, size: int, _seconds: float) -> None:
        self.batches.append(size)

    def observe_wait(self, _model: str, seconds: float) -> None:
        self.waits.append(seconds)

    def set_queue(self, _model: str, depth: int) -> None:
        self.depths.append(depth)

    def count_refusal(self, _model: str, reason: str) -> None:
        self.refusals.append(reason)


@dataclass
class Work:
    """A request that wants `turns` turns; its answer is its name in capitals."""

    name: str
    turns: int = 1


@dataclass
class Gate:
    """A predict function that keeps a diary of its batches, holds the first until it is opened and fails `bad` ones."""

    batches: list[list[str]] = field(default_factory=list)
    entered: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)

    def __call__(self, batch: Sequence[Work]) -> list[str | None]:
        self.batches.append([work.name for work in batch])
        self.entered.set()
        assert self.opened.wait(PATIENCE)
        if any(work.name == "bad" for work in batch):
            raise ArithmeticError("bad numbers")
        for work in batch:
            work.turns -= 1
        return [None if work.turns else work.name.upper() for work in batch]


class Bench:
    """A batcher whose thread is held in the first batch, that of `first`."""

    def __init__(self, gate: Gate, batcher: Batcher, recorder: Recorder, first: asyncio.Task[Any]) -> None:
        self.gate = gate
        self.batcher = batcher
        self.recorder = recorder
        self.first = first

    async def submit(self, *work: Work, deadline: float | None = None) -> list[asyncio.Task[Any]]:
        """Callers whose examples are in the queue, in this order."""
        tasks = [asyncio.create_task(self.batcher.submit(example, deadline)) for example in work]
        await asyncio.sleep(0)  # each runs to where it waits for its answer
        return tasks


@asynccontextmanager
async def busy(
    first: Work | None = None,
    *,
    queue_size: int = 10,
    batch_size: int = 10,
    now: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[Bench]:
    gate, recorder = Gate(), Recorder()
    batcher = Batcher("m", gate, recorder, queue_size=queue_size, batch_size=batch_size, now=now)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(batcher.close)
        stack.callback(gate.opened.set)
        task = asyncio.create_task(batcher.submit(first or Work("first")))
        assert await asyncio.to_thread(gate.entered.wait, PATIENCE)
        yield Bench(gate, batcher, recorder, task)


async def answers(*tasks: asyncio.Task[Any]) -> list[Any]:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.gather(*tasks)


async def failure(task: asyncio.Task[Any]) -> BaseException | None:
    await asyncio.wait([task], timeout=PATIENCE)
    return task.exception()


async def test_while_a_batch_runs_the_next_gathers() -> None:
    async with busy() as bench:
        tasks = await bench.submit(Work("a"), Work("b"), Work("c"))
        bench.gate.opened.set()
        assert await answers(bench.first, *tasks) == ["FIRST", "A", "B", "C"]
    assert bench.gate.batches == [["first"], ["a", "b", "c"]]
    assert bench.recorder.batches == [1, 3]


async def test_an_event_loop_is_woken_once_for_all_answers_of_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, woken = asyncio.get_running_loop(), []
    wake = loop.call_soon_threadsafe

    def watched(*call: Any) -> asyncio.Handle:
        woken.append(call)
        return wake(*call)

    async with busy() as bench:
        tasks = await bench.submit(*map(Work, "abc"))
        monkeypatch.setattr(loop, "call_soon_threadsafe", watched)
        bench.gate.opened.set()
        assert await answers(bench.first, *tasks) == ["FIRST", "A", "B", "C"]
        assert len(woken) == 2


async def test_callers_of_several_event_loops_share_a_batch() -> None:
    waits = threading.Event()

    async def elsewhere(bench: Bench) -> Any:
        (task,) = await bench.submit(Work("there"))
        waits.set()
        return await task

    async with busy() as bench:
        there = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere(bench)))
        assert await asyncio.to_thread(waits.wait, PATIENCE)
        (here,) = await bench.submit(Work("here"))
        bench.gate.opened.set()
        assert await answers(there, here) == ["THERE", "HERE"]
    assert bench.gate.batches == [["first"], ["there", "here"]]


async def test_a_batch_is_no_larger_than_allowed() -> None:
    async with busy(batch_size=2) as bench:
        tasks = await bench.submit(*map(Work, "abcde"))
        bench.gate.opened.set()
        assert await answers(*tasks) == list("ABCDE")
    assert bench.gate.batches == [["first"], ["a", "b"], ["c", "d"], ["e"]]


async def test_a_full_queue_refuses_at_once_and_serves_the_rest() -> None:
    async with busy(queue_size=2) as bench:
        tasks = await bench.submit(Work("a"), Work("b"))
        assert bench.batcher.depth == 2  # what runs does not wait
        with pytest.raises(Overloaded, match="m: 2 requests wait"):
            await bench.batcher.submit(Work("c"))
        bench.gate.opened.set()
        assert await answers(*tasks) == ["A", "B"]
        assert await bench.batcher.submit(Work("d")) == "D"
    assert bench.recorder.refusals == ["overloaded"]


async def test_what_wants_another_turn_is_never_refused() -> None:
    async with busy(Work("long", turns=3), queue_size=1) as bench:
        (task,) = await bench.submit(Work("a", turns=2))
        bench.gate.opened.set()
        assert await answers(bench.first, task) == ["LONG", "A"]
        assert bench.batcher.depth == 0
    assert bench.recorder.depths[-1] == 0


async def test_what_is_under_way_counts_against_what_is_accepted() -> None:
    begun, allowed = threading.Semaphore(0), threading.Semaphore(0)

    def turn(batch: Sequence[Work]) -> list[str | None]:
        begun.release()
        assert allowed.acquire(timeout=PATIENCE)
        for work in batch:
            work.turns -= 1
        return [None if work.turns else work.name for work in batch]

    batcher = Batcher("m", turn, Recorder(), queue_size=2, batch_size=1)
    tasks = [asyncio.create_task(batcher.submit(Work("a", turns=2)))]
    assert await asyncio.to_thread(begun.acquire, timeout=PATIENCE)
    tasks += [asyncio.create_task(batcher.submit(Work(name))) for name in "bc"]
    await asyncio.sleep(0)
    allowed.release()  # a has had a turn and wants another: c and a wait while b runs
    assert await asyncio.to_thread(begun.acquire, timeout=PATIENCE)
    with pytest.raises(Overloaded):
        await batcher.submit(Work("d"))
    allowed.release(3)
    assert await answers(*tasks) == ["a", "b", "c"]
    await batcher.close()


async def test_a_request_of_a_few_turns_does_not_wait_for_long_ones() -> None:
    async with busy(batch_size=4) as bench:
        long = await bench.submit(*(Work(f"long{place}", turns=200) for place in range(6)))
        short = await bench.submit(Work("short", turns=5))
        bench.gate.opened.set()
        assert await answers(*short, *long) == ["SHORT", *(f"LONG{place}" for place in range(6))]
    served = [place for place, batch in enumerate(bench.gate.batches) if "short" in batch]
    first = min(place for place, batch in enumerate(bench.gate.batches) if "long0" in batch)
    assert len(served) == 5
    assert served[-1] - first < 30  # the long ones take more than 200 batches


async def test_of_long_requests_the_oldest_are_finished_first() -> None:
    async with busy(batch_size=2) as bench:
        tasks = await bench.submit(*(Work(name, turns=50) for name in "abcd"))
        bench.gate.opened.set()
        await answers(*tasks)
    last = {name: max(n for n, batch in enumerate(bench.gate.batches) if name in batch) for name in "abcd"}
    assert max(last["a"], last["b"]) < min(last["c"], last["d"])


async def test_a_deadline_passes_for_those_who_wait_between_their_turns_too() -> None:
    clock = [0.0]

    class Clocked(Recorder):
        def count_refusal(self, _model: str, reason: str) -> None:
            self.refusals.append(f"{reason} at {clock[0]:g}")

    def turn(batch: Sequence[Work]) -> list[str | None]:
        clock[0] += 1
        for work in batch:
            work.turns -= 1
        return [None if work.turns else work.name for work in batch]

    recorder = Clocked()
    batcher = Batcher("m", turn, recorder, queue_size=10, batch_size=2, now=lambda: clock[0])
    tasks = [asyncio.create_task(batcher.submit(Work(name, turns=500))) for name in "ab"]
    late = asyncio.create_task(batcher.submit(Work("late", turns=500), deadline=60.0))
    assert isinstance(await failure(late), DeadlineExceeded)
    assert await answers(*tasks) == ["a", "b"]
    assert recorder.refusals == ["deadline at 61"]
    await batcher.close()


async def test_a_caller_that_left_is_dropped_before_its_batch_and_spares_its_batch_mates() -> None:
    async with busy() as bench:
        a, b, c = await bench.submit(Work("a"), Work("b"), Work("c"))
        b.cancel()
        await asyncio.wait([b])
        bench.gate.opened.set()
        assert await answers(a, c) == ["A", "C"]
        assert bench.batcher.depth == 0
    assert bench.gate.batches == [["first"], ["a", "c"]]
    assert bench.recorder.refusals == ["cancelled"]


async def test_a_caller_that_leaves_during_its_batch_spares_its_batch_mates() -> None:
    async with busy(Work("long", turns=4)) as bench:
        (task,) = await bench.submit(Work("a"))
        bench.first.cancel()
        await asyncio.wait([bench.first])
        bench.gate.opened.set()
        assert await task == "A"
    assert bench.gate.batches == [["long"], ["a"]]  # no further turn for one who left


async def test_a_batch_of_callers_who_all_left_is_not_run() -> None:
    async with busy() as bench:
        tasks = await bench.submit(Work("a"), Work("b"))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        bench.gate.opened.set()
        assert await bench.first == "FIRST"
    assert bench.gate.batches == [["first"]]


async def test_a_caller_whose_event_loop_is_gone_harms_nobody() -> None:
    gate = Gate()
    batcher = Batcher("m", gate, Recorder(), queue_size=10, batch_size=10)

    async def leave() -> None:
        task = asyncio.create_task(batcher.submit(Work("gone")))
        assert await asyncio.to_thread(gate.entered.wait, PATIENCE)
        task.cancel()

    await asyncio.to_thread(asyncio.run, leave())
    gate.opened.set()
    async with asyncio.timeout(PATIENCE):
        assert await batcher.submit(Work("a")) == "A"
    await batcher.close()


async def test_after_its_deadline_a_request_gets_no_turn() -> None:
    clock = [100.0]
    async with busy(now=lambda: clock[0]) as bench:
        (late,) = await bench.submit(Work("late"), deadline=105.0)
        (exact,) = await bench.submit(Work("exact"), deadline=106.0)
        (patient,) = await bench.submit(Work("patient"))
        clock[0] = 106.0
        bench.gate.opened.set()
        assert isinstance(await failure(late), DeadlineExceeded)
        assert await answers(exact, patient) == ["EXACT", "PATIENT"]
        assert bench.batcher.depth == 0
    assert bench.gate.batches == [["first"], ["exact", "patient"]]
    assert bench.recorder.refusals == ["deadline"]
    assert bench.recorder.waits == [0, 6, 6]


async def test_a_deadline_may_pass_between_two_turns() -> None:
    clock = [0.0]

    def turn(batch: Sequence[Work]) -> list[str | None]:
        clock[0] += 10
        return [None] * len(batch)

    batcher = Batcher("m", turn, Recorder(), queue_size=1, batch_size=1, now=lambda: clock[0])
    with pytest.raises(DeadlineExceeded, match="m: the deadline passed"):
        await batcher.submit(Work("endless"), deadline=35)
    assert clock[0] == 40
    await batcher.close()


async def test_what_is_unfinished_goes_to_the_back_and_others_are_served_between_its_turns() -> None:
    async with busy(Work("long", turns=3), batch_size=1) as bench:
        tasks = await bench.submit(Work("a"), Work("b"))
        bench.gate.opened.set()
        assert await answers(bench.first, *tasks) == ["LONG", "A", "B"]
    assert bench.gate.batches == [["long"], ["a"], ["b"], ["long"], ["long"]]


async def test_a_long_request_shares_its_later_turns_with_what_has_come() -> None:
    async with busy(Work("long", turns=3)) as bench:
        tasks = await bench.submit(Work("a"), Work("b", turns=2))
        bench.gate.opened.set()
        await answers(bench.first, *tasks)
    assert bench.gate.batches == [["long"], ["a", "b", "long"], ["b", "long"]]


async def test_a_request_is_told_how_long_it_waited_and_what_its_turns_took() -> None:
    times = iter([0.0, 10.0, 11.0, 12.5, 20.0, 21.0])  # accepted, waited, begun, ended, begun, ended

    def predict(batch: Sequence[Work]) -> list[str | None]:
        for work in batch:
            work.turns -= 1
        return [None if work.turns else work.name for work in batch]

    batcher = Batcher("m", predict, Recorder(), queue_size=10, batch_size=10, now=lambda: next(times))
    account = RequestUsage()
    token = REQUEST_USAGE.set(account)
    try:
        await batcher.submit(Work("a", turns=2))
    finally:
        REQUEST_USAGE.reset(token)
        await batcher.close()
    assert account.queue_s == 11.0
    assert (account.started, account.finished) == (11.0, 21.0)
    assert account.engine_s == 2.5


async def test_a_turn_that_a_requests_examples_share_counts_once_and_each_request_by_itself() -> None:
    clock = iter(range(1000))
    async with busy(now=lambda: float(next(clock))) as bench:
        accounts = RequestUsage(), RequestUsage()
        tasks = []
        for account, names in zip(accounts, ("ab", "c"), strict=True):
            token = REQUEST_USAGE.set(account)
            tasks += await bench.submit(*map(Work, names))
            REQUEST_USAGE.reset(token)
        bench.gate.opened.set()
        await answers(*tasks)
    assert bench.gate.batches[1] == ["a", "b", "c"]
    assert accounts[0].engine_s == accounts[1].engine_s > 0
    assert accounts[0].started == accounts[1].started


async def test_an_exception_fails_its_batch_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with busy(batch_size=2) as bench:
        bad, mate, later = await bench.submit(Work("bad"), Work("mate"), Work("later"))
        bench.gate.opened.set()
        assert isinstance(await failure(bad), ArithmeticError)
        assert isinstance(await failure(mate), ArithmeticError)
        assert await answers(bench.first, later) == ["FIRST", "LATER"]
    assert "m: a batch of 2 failed" in caplog.text
    assert "bad numbers" in caplog.text


async def test_a_predictor_that_loses_an_answer_fails_its_batch_alone() -> None:
    answers = iter([["A", "too many"], ["B"]])
    batcher = Batcher("m", lambda batch: next(answers), Recorder(), queue_size=10, batch_size=10)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ValueError, match="zip"):
            await batcher.submit(Work("a"))
        assert await batcher.submit(Work("b")) == "B"
    await batcher.close()


async def test_closing_finishes_what_was_accepted_then_refuses() -> None:
    async with busy(Work("long", turns=3)) as bench:
        tasks = await bench.submit(Work("a"), Work("b", turns=2))
        closing = asyncio.create_task(bench.batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(NotReady, match="m: is shutting down"):
            await bench.batcher.submit(Work("c"))
        bench.gate.opened.set()
        await closing
        assert await answers(bench.first, *tasks) == ["LONG", "A", "B"]
        with pytest.raises(NotReady, match="m: is shutting down"):
            await bench.batcher.submit(Work("d"))


async def test_closing_an_idle_batcher_ends_its_thread() -> None:
    batcher = Batcher("idle", lambda batch: list(batch), Recorder(), queue_size=1, batch_size=1)
    await batcher.close()
    await batcher.close()
    assert "inference-idle" not in {thread.name for thread in threading.enumerate()}


class Turns:
    """A predict function whose turns tell who had them, and in which thread; that of a name with a `?` is not light."""

    def __init__(self) -> None:
        self.given: list[tuple[list[str], bool]] = []  # the names, and whether it was the main thread's
        self.asked = 0

    def __call__(self, batch: Sequence[Work]) -> list[str | None]:
        self.given.append(([work.name for work in batch], threading.current_thread() is threading.main_thread()))
        for work in batch:
            work.turns -= 1
            if work.name == "bad":
                raise ArithmeticError("bad numbers")
        return [None if work.turns else work.name.upper() for work in batch]

    def is_light(self, batch: Sequence[Work]) -> bool:
        self.asked += 1
        if any(work.name == "unclear" for work in batch):
            raise ArithmeticError("no telling")
        return not any(work.name.endswith("?") for work in batch)


@asynccontextmanager
async def in_turns(light_size: int = 3) -> AsyncIterator[tuple[Turns, Batcher]]:
    turns = Turns()
    batcher = Batcher(
        "m", turns, Recorder(), queue_size=100, batch_size=10, is_light=turns.is_light, light_size=light_size
    )
    try:
        yield turns, batcher
    finally:
        await batcher.close()


async def ask(batcher: Batcher, *work: Work) -> list[Any]:
    return await answers(*(asyncio.create_task(batcher.submit(each)) for each in work))


async def test_a_light_turn_is_given_in_the_event_loop_to_all_that_have_come() -> None:
    async with in_turns() as (turns, batcher):
        assert await ask(batcher, *map(Work, "abc")) == ["A", "B", "C"]
        assert await batcher.submit(Work("d")) == "D"
    assert turns.given == [(["a", "b", "c"], True), (["d"], True)]


async def test_those_who_come_while_others_are_taken_in_share_their_turn() -> None:
    async with in_turns() as (turns, batcher):
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(batcher.submit(Work("a")))
        later = loop.create_future()
        loop.call_soon(lambda: later.set_result(asyncio.create_task(batcher.submit(Work("b")))))
        assert await answers(first, await later) == ["A", "B"]
    assert turns.given == [(["a", "b"], True)]


async def test_what_are_too_many_for_a_light_turn_are_the_threads() -> None:
    async with in_turns(light_size=2) as (turns, batcher):
        assert await ask(batcher, *map(Work, "abc")) == ["A", "B", "C"]
    assert turns.given == [(["a", "b", "c"], False)]


async def test_a_turn_that_is_not_light_is_given_in_the_thread() -> None:
    async with in_turns() as (turns, batcher):
        assert await ask(batcher, Work("a"), Work("b?")) == ["A", "B?"]
        assert await batcher.submit(Work("c")) == "C"
    assert turns.given == [(["a", "b?"], False), (["c"], True)]


async def test_further_turns_are_given_in_the_thread() -> None:
    async with in_turns() as (turns, batcher):
        assert await ask(batcher, Work("a", turns=3), Work("b")) == ["A", "B"]
    assert turns.given == [(["a", "b"], True), (["a"], False), (["a"], False)]


async def test_what_comes_while_the_thread_works_is_the_threads() -> None:
    gate = Gate()
    batcher = Batcher(
        "m", gate, Recorder(), queue_size=9, batch_size=9, is_light=lambda batch: batch[0].name != "heavy"
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(batcher.close)
        stack.callback(gate.opened.set)
        heavy = asyncio.create_task(batcher.submit(Work("heavy")))
        assert await asyncio.to_thread(gate.entered.wait, PATIENCE)
        light = asyncio.create_task(batcher.submit(Work("light")))
        for _ in range(5):  # it is not given a turn here: two are never given at once
            await asyncio.sleep(0)
        assert gate.batches == [["heavy"]]
        gate.opened.set()
        assert await answers(heavy, light) == ["HEAVY", "LIGHT"]
    assert gate.batches == [["heavy"], ["light"]]


@pytest.mark.parametrize("name", ["bad", "unclear"])
async def test_a_light_turn_that_fails_fails_its_batch_alone(name: str) -> None:
    async with in_turns() as (_, batcher):
        failing = [asyncio.create_task(batcher.submit(Work(each))) for each in (name, "mate")]
        assert [type(await failure(task)) for task in failing] == [ArithmeticError, ArithmeticError]
        assert await batcher.submit(Work("later")) == "LATER"


async def test_a_light_turn_counts_as_any_other() -> None:
    account = RequestUsage()
    token = REQUEST_USAGE.set(account)
    try:
        async with in_turns() as (_, batcher):
            await batcher.submit(Work("a"))
    finally:
        REQUEST_USAGE.reset(token)
    assert account.started is not None
    assert account.finished is not None
    assert account.engine_s == account.finished - account.started


async def test_who_leaves_before_a_light_turn_gets_none() -> None:
    async with in_turns() as (turns, batcher):
        leaving, staying = (asyncio.create_task(batcher.submit(Work(name))) for name in ("leaving", "staying"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == "STAYING"
    assert turns.given == [(["staying"], True)]


async def test_closing_finishes_what_waits_for_a_light_turn() -> None:
    async with in_turns() as (turns, batcher):
        waiting = asyncio.create_task(batcher.submit(Work("a")))
        await asyncio.sleep(0)
        await batcher.close()
        assert await waiting == "A"
    assert len(turns.given) == 1


class Elsewhere:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self) -> "Elsewhere":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Future[Any]":
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))


@asynccontextmanager
async def light_turn_under_way() -> AsyncIterator[tuple[Gate, Batcher, "asyncio.Future[Any]"]]:
    """A batcher whose first turn is held, in another event loop than the one that runs."""
    gate = Gate()
    batcher = Batcher("m", gate, Recorder(), queue_size=9, batch_size=9, is_light=lambda _: True)
    with Elsewhere() as elsewhere:
        first = elsewhere.run(batcher.submit(Work("first")))
        assert await asyncio.to_thread(gate.entered.wait, PATIENCE)
        try:
            yield gate, batcher, first
        finally:
            gate.opened.set()
            async with asyncio.timeout(PATIENCE):
                await batcher.close()


async def test_while_an_event_loop_gives_a_turn_nobody_else_does() -> None:
    async with light_turn_under_way() as (gate, batcher, first):
        second = asyncio.create_task(batcher.submit(Work("second")))
        await asyncio.sleep(0)
        with batcher._changed:  # noqa: SLF001
            batcher._changed.notify_all()  # noqa: SLF001  # as may happen for no reason
        batcher._look(asyncio.get_running_loop(), 0)  # noqa: SLF001  # as one that was called before the turn
        for _ in range(50):  # the inference thread has had the time to take it
            await asyncio.to_thread(lambda: None)
        assert batcher.depth == 1
        assert gate.batches == [["first"]]
        gate.opened.set()
        assert await answers(cast("asyncio.Task[Any]", first), second) == ["FIRST", "SECOND"]
    assert gate.batches == [["first"], ["second"]]


async def test_closing_waits_for_the_turn_of_another_event_loop_and_ends() -> None:
    async with light_turn_under_way() as (gate, batcher, first):
        closing = asyncio.create_task(batcher.close())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done()
        gate.opened.set()
        async with asyncio.timeout(PATIENCE):
            await closing
            assert await first == "FIRST"


async def test_a_loop_that_ends_before_it_looks_leaves_no_one_waiting() -> None:
    async with in_turns() as (turns, batcher):
        gone = asyncio.new_event_loop()
        task = gone.create_task(batcher.submit(Work("gone")))
        gone.call_soon(gone.stop)  # when the submission has run, and before the look
        await asyncio.to_thread(gone.run_forever)
        gone.close()
        async with asyncio.timeout(PATIENCE):
            assert await batcher.submit(Work("here")) == "HERE"
            assert await batcher.submit(Work("again")) == "AGAIN"
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  # it never ends
    assert turns.given[0][0] == ["gone", "here"]


async def test_an_observer_that_fails_fails_one_batch_alone() -> None:
    class Failing(Recorder):
        def observe_batch(self, _model: str, size: int, _seconds: float) -> None:
            self.batches.append(size)
            if len(self.batches) == 1:
                raise ArithmeticError("no counting")

    batcher = Batcher("m", Turns(), Failing(), queue_size=9, batch_size=9, is_light=lambda _: True)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ArithmeticError, match="no counting"):
            await batcher.submit(Work("a"))
        assert await batcher.submit(Work("b")) == "B"
        await batcher.close()


class Countdown:
    """A predictor whose example is a number of turns; its answer is that number."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare(self, payload: int) -> list[int]:
        return [payload, payload]  # in all, still to come

    def predict(self, examples: Sequence[list[int]]) -> list[int | None]:
        self.batches.append(len(examples))
        for example in examples:
            example[1] -= 1
        return [example[0] if not example[1] else None for example in examples]


def test_answer_all_gives_turns_together_until_each_has_its_answer() -> None:
    predictor = Countdown()
    assert answer_all(predictor, [predictor.prepare(turns) for turns in (2, 1, 3)]) == [2, 1, 3]
    assert predictor.batches == [3, 2, 1]


def test_answer_all_of_nothing_is_nothing() -> None:
    predictor = Countdown()
    assert answer_all(predictor, []) == []
    assert predictor.batches == []
