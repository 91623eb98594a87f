import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from app.errors import DeadlineExceeded, NotReady, Overloaded
from app.runtime.metrics import REQUEST_USAGE, RequestUsage
from app.runtime.predictor import Partial, answer_all
from app.runtime.queueing import MAX_UNREAD
from app.runtime.scheduler import Scheduler

pytestmark = pytest.mark.anyio

PATIENCE = 30  # seconds until a hung test fails


class Recorder:
    """An Observer that records its calls."""

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
    """A request that needs `steps` steps; its answer is its name in capitals."""

    name: str
    steps: int = 1


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
            work.steps -= 1
        return [None if work.steps else work.name.upper() for work in batch]


class Bench:
    """A scheduler whose thread is held in the first batch, that of `first`."""

    def __init__(self, gate: Gate, scheduler: Scheduler, recorder: Recorder, first: asyncio.Task[Any]) -> None:
        self.gate = gate
        self.scheduler = scheduler
        self.recorder = recorder
        self.first = first

    async def submit(self, *work: Work, deadline: float | None = None) -> list[asyncio.Task[Any]]:
        """Submit examples; return tasks whose examples are queued in this order."""
        tasks = [asyncio.create_task(self.scheduler.submit(example, deadline)) for example in work]
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
    scheduler = Scheduler("m", gate, recorder, queue_size=queue_size, batch_size=batch_size, now=now)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(scheduler.close)
        stack.callback(gate.opened.set)
        task = asyncio.create_task(scheduler.submit(first or Work("first")))
        assert await asyncio.to_thread(gate.entered.wait, PATIENCE)
        yield Bench(gate, scheduler, recorder, task)


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


async def test_a_full_queue_rejects_at_once_and_serves_the_rest() -> None:
    async with busy(queue_size=2) as bench:
        tasks = await bench.submit(Work("a"), Work("b"))
        assert bench.scheduler.depth == 2  # what runs does not wait
        with pytest.raises(Overloaded, match="m: the queue is full with 2 requests"):
            await bench.scheduler.submit(Work("c"))
        bench.gate.opened.set()
        assert await answers(*tasks) == ["A", "B"]
        assert await bench.scheduler.submit(Work("d")) == "D"
    assert bench.recorder.refusals == ["overloaded"]


async def test_what_wants_another_step_is_never_rejected() -> None:
    async with busy(Work("long", steps=3), queue_size=1) as bench:
        (task,) = await bench.submit(Work("a", steps=2))
        bench.gate.opened.set()
        assert await answers(bench.first, task) == ["LONG", "A"]
        assert bench.scheduler.depth == 0
    assert bench.recorder.depths[-1] == 0


async def test_unfinished_jobs_count_against_the_queue_size() -> None:
    started, allowed = threading.Semaphore(0), threading.Semaphore(0)

    def step(batch: Sequence[Work]) -> list[str | None]:
        started.release()
        assert allowed.acquire(timeout=PATIENCE)
        for work in batch:
            work.steps -= 1
        return [None if work.steps else work.name for work in batch]

    scheduler = Scheduler("m", step, Recorder(), queue_size=2, batch_size=1)
    tasks = [asyncio.create_task(scheduler.submit(Work("a", steps=2)))]
    assert await asyncio.to_thread(started.acquire, timeout=PATIENCE)
    tasks += [asyncio.create_task(scheduler.submit(Work(name))) for name in "bc"]
    await asyncio.sleep(0)
    allowed.release()  # a has had a step and wants another: c and a wait while b runs
    assert await asyncio.to_thread(started.acquire, timeout=PATIENCE)
    with pytest.raises(Overloaded):
        await scheduler.submit(Work("d"))
    allowed.release(3)
    assert await answers(*tasks) == ["a", "b", "c"]
    await scheduler.close()


async def test_a_request_of_a_few_steps_does_not_wait_for_long_ones() -> None:
    async with busy(batch_size=4) as bench:
        long = await bench.submit(*(Work(f"long{place}", steps=200) for place in range(6)))
        short = await bench.submit(Work("short", steps=5))
        bench.gate.opened.set()
        assert await answers(*short, *long) == ["SHORT", *(f"LONG{place}" for place in range(6))]
    served = [place for place, batch in enumerate(bench.gate.batches) if "short" in batch]
    first = min(place for place, batch in enumerate(bench.gate.batches) if "long0" in batch)
    assert len(served) == 5
    assert served[-1] - first < 30  # the long ones take more than 200 batches


async def test_the_oldest_long_requests_finish_first() -> None:
    async with busy(batch_size=2) as bench:
        tasks = await bench.submit(*(Work(name, steps=50) for name in "abcd"))
        bench.gate.opened.set()
        await answers(*tasks)
    last = {name: max(n for n, batch in enumerate(bench.gate.batches) if name in batch) for name in "abcd"}
    assert max(last["a"], last["b"]) < min(last["c"], last["d"])


async def test_a_deadline_applies_between_steps_too() -> None:
    clock = [0.0]

    class Clocked(Recorder):
        def count_refusal(self, _model: str, reason: str) -> None:
            self.refusals.append(f"{reason} at {clock[0]:g}")

    def step(batch: Sequence[Work]) -> list[str | None]:
        clock[0] += 1
        for work in batch:
            work.steps -= 1
        return [None if work.steps else work.name for work in batch]

    recorder = Clocked()
    scheduler = Scheduler("m", step, recorder, queue_size=10, batch_size=2, now=lambda: clock[0])
    tasks = [asyncio.create_task(scheduler.submit(Work(name, steps=500))) for name in "ab"]
    late = asyncio.create_task(scheduler.submit(Work("late", steps=500), deadline=60.0))
    assert isinstance(await failure(late), DeadlineExceeded)
    assert await answers(*tasks) == ["a", "b"]
    assert recorder.refusals == ["deadline at 61"]
    await scheduler.close()


async def test_a_cancelled_request_is_dropped_before_its_batch_and_spares_its_batch_mates() -> None:
    async with busy() as bench:
        a, b, c = await bench.submit(Work("a"), Work("b"), Work("c"))
        b.cancel()
        await asyncio.wait([b])
        bench.gate.opened.set()
        assert await answers(a, c) == ["A", "C"]
        assert bench.scheduler.depth == 0
    assert bench.gate.batches == [["first"], ["a", "c"]]
    assert bench.recorder.refusals == ["cancelled"]


async def test_a_request_cancelled_during_its_batch_spares_its_batch_mates() -> None:
    async with busy(Work("long", steps=4)) as bench:
        (task,) = await bench.submit(Work("a"))
        bench.first.cancel()
        await asyncio.wait([bench.first])
        bench.gate.opened.set()
        assert await task == "A"
    assert bench.gate.batches == [["long"], ["a"]]  # no further step for a cancelled request


async def test_a_batch_of_cancelled_requests_is_not_run() -> None:
    async with busy() as bench:
        tasks = await bench.submit(Work("a"), Work("b"))
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        bench.gate.opened.set()
        assert await bench.first == "FIRST"
    assert bench.gate.batches == [["first"]]


async def test_a_closed_event_loop_affects_no_other_request() -> None:
    gate = Gate()
    scheduler = Scheduler("m", gate, Recorder(), queue_size=10, batch_size=10)

    async def leave() -> None:
        task = asyncio.create_task(scheduler.submit(Work("gone")))
        assert await asyncio.to_thread(gate.entered.wait, PATIENCE)
        task.cancel()

    await asyncio.to_thread(asyncio.run, leave())
    gate.opened.set()
    async with asyncio.timeout(PATIENCE):
        assert await scheduler.submit(Work("a")) == "A"
    await scheduler.close()


async def test_an_expired_request_gets_no_step() -> None:
    clock = [100.0]
    async with busy(now=lambda: clock[0]) as bench:
        (late,) = await bench.submit(Work("late"), deadline=105.0)
        (exact,) = await bench.submit(Work("exact"), deadline=106.0)
        (patient,) = await bench.submit(Work("patient"))
        clock[0] = 106.0
        bench.gate.opened.set()
        assert isinstance(await failure(late), DeadlineExceeded)
        assert await answers(exact, patient) == ["EXACT", "PATIENT"]
        assert bench.scheduler.depth == 0
    assert bench.gate.batches == [["first"], ["exact", "patient"]]
    assert bench.recorder.refusals == ["deadline"]
    assert bench.recorder.waits == [0, 6, 6]


async def test_a_deadline_may_pass_between_two_steps() -> None:
    clock = [0.0]

    def step(batch: Sequence[Work]) -> list[str | None]:
        clock[0] += 10
        return [None] * len(batch)

    scheduler = Scheduler("m", step, Recorder(), queue_size=1, batch_size=1, now=lambda: clock[0])
    with pytest.raises(DeadlineExceeded, match="m: the deadline passed"):
        await scheduler.submit(Work("endless"), deadline=35)
    assert clock[0] == 40
    await scheduler.close()


async def test_an_unfinished_request_goes_to_the_back_of_the_queue() -> None:
    async with busy(Work("long", steps=3), batch_size=1) as bench:
        tasks = await bench.submit(Work("a"), Work("b"))
        bench.gate.opened.set()
        assert await answers(bench.first, *tasks) == ["LONG", "A", "B"]
    assert bench.gate.batches == [["long"], ["a"], ["b"], ["long"], ["long"]]


async def test_a_long_request_shares_its_later_steps_with_new_requests() -> None:
    async with busy(Work("long", steps=3)) as bench:
        tasks = await bench.submit(Work("a"), Work("b", steps=2))
        bench.gate.opened.set()
        await answers(bench.first, *tasks)
    assert bench.gate.batches == [["long"], ["a", "b", "long"], ["b", "long"]]


async def test_waiting_and_step_times_are_counted_per_request() -> None:
    times = iter([0.0, 10.0, 11.0, 12.5, 20.0, 21.0])  # accepted, waited, started, ended, started, ended

    def predict(batch: Sequence[Work]) -> list[str | None]:
        for work in batch:
            work.steps -= 1
        return [None if work.steps else work.name for work in batch]

    scheduler = Scheduler("m", predict, Recorder(), queue_size=10, batch_size=10, now=lambda: next(times))
    usage = RequestUsage()
    token = REQUEST_USAGE.set(usage)
    try:
        await scheduler.submit(Work("a", steps=2))
    finally:
        REQUEST_USAGE.reset(token)
        await scheduler.close()
    assert usage.queue_s == 11.0
    assert (usage.started, usage.finished) == (11.0, 21.0)
    assert usage.engine_s == 2.5


async def test_a_step_that_a_requests_examples_share_counts_once_and_each_request_by_itself() -> None:
    clock = iter(range(1000))
    async with busy(now=lambda: float(next(clock))) as bench:
        usages = RequestUsage(), RequestUsage()
        tasks = []
        for usage, names in zip(usages, ("ab", "c"), strict=True):
            token = REQUEST_USAGE.set(usage)
            tasks += await bench.submit(*map(Work, names))
            REQUEST_USAGE.reset(token)
        bench.gate.opened.set()
        await answers(*tasks)
    assert bench.gate.batches[1] == ["a", "b", "c"]
    assert usages[0].engine_s == usages[1].engine_s > 0
    assert usages[0].started == usages[1].started


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
    scheduler = Scheduler("m", lambda batch: next(answers), Recorder(), queue_size=10, batch_size=10)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ValueError, match="zip"):
            await scheduler.submit(Work("a"))
        assert await scheduler.submit(Work("b")) == "B"
    await scheduler.close()


async def test_close_finishes_accepted_requests_and_rejects_new_ones() -> None:
    async with busy(Work("long", steps=3)) as bench:
        tasks = await bench.submit(Work("a"), Work("b", steps=2))
        closing = asyncio.create_task(bench.scheduler.close())
        await asyncio.sleep(0)
        with pytest.raises(NotReady, match="m: is shutting down"):
            await bench.scheduler.submit(Work("c"))
        bench.gate.opened.set()
        await closing
        assert await answers(bench.first, *tasks) == ["LONG", "A", "B"]
        with pytest.raises(NotReady, match="m: is shutting down"):
            await bench.scheduler.submit(Work("d"))


async def test_closing_an_idle_scheduler_ends_its_thread() -> None:
    scheduler = Scheduler("idle", lambda batch: list(batch), Recorder(), queue_size=1, batch_size=1)
    await scheduler.close()
    await scheduler.close()
    assert "inference-idle" not in {thread.name for thread in threading.enumerate()}


class Steps:
    """A predict function that records each step's batch and thread; a name with a `?` does not fit inline."""

    def __init__(self) -> None:
        self.given: list[tuple[list[str], bool]] = []  # the names, and whether the main thread ran it
        self.asked = 0

    def __call__(self, batch: Sequence[Work]) -> list[str | None]:
        self.given.append(([work.name for work in batch], threading.current_thread() is threading.main_thread()))
        for work in batch:
            work.steps -= 1
            if work.name == "bad":
                raise ArithmeticError("bad numbers")
        return [None if work.steps else work.name.upper() for work in batch]

    def fits_inline(self, batch: Sequence[Work]) -> bool:
        self.asked += 1
        if any(work.name == "unclear" for work in batch):
            raise ArithmeticError("no telling")
        return not any(work.name.endswith("?") for work in batch)


@asynccontextmanager
async def in_steps(max_inline_batch: int = 3) -> AsyncIterator[tuple[Steps, Scheduler]]:
    steps = Steps()
    scheduler = Scheduler(
        "m",
        steps,
        Recorder(),
        queue_size=100,
        batch_size=10,
        fits_inline=steps.fits_inline,
        max_inline_batch=max_inline_batch,
    )
    try:
        yield steps, scheduler
    finally:
        await scheduler.close()


async def ask(scheduler: Scheduler, *work: Work) -> list[Any]:
    return await answers(*(asyncio.create_task(scheduler.submit(each)) for each in work))


async def test_an_inline_step_runs_on_the_event_loop_over_all_queued_requests() -> None:
    async with in_steps() as (steps, scheduler):
        assert await ask(scheduler, *map(Work, "abc")) == ["A", "B", "C"]
        assert await scheduler.submit(Work("d")) == "D"
    assert steps.given == [(["a", "b", "c"], True), (["d"], True)]


async def test_requests_accepted_in_the_same_loop_iteration_share_a_step() -> None:
    async with in_steps() as (steps, scheduler):
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(scheduler.submit(Work("a")))
        later = loop.create_future()
        loop.call_soon(lambda: later.set_result(asyncio.create_task(scheduler.submit(Work("b")))))
        assert await answers(first, await later) == ["A", "B"]
    assert steps.given == [(["a", "b"], True)]


async def test_a_batch_too_large_for_an_inline_step_runs_in_the_thread() -> None:
    async with in_steps(max_inline_batch=2) as (steps, scheduler):
        assert await ask(scheduler, *map(Work, "abc")) == ["A", "B", "C"]
    assert steps.given == [(["a", "b", "c"], False)]


async def test_an_expensive_step_runs_in_the_thread() -> None:
    async with in_steps() as (steps, scheduler):
        assert await ask(scheduler, Work("a"), Work("b?")) == ["A", "B?"]
        assert await scheduler.submit(Work("c")) == "C"
    assert steps.given == [(["a", "b?"], False), (["c"], True)]


async def test_further_steps_run_in_the_thread() -> None:
    async with in_steps() as (steps, scheduler):
        assert await ask(scheduler, Work("a", steps=3), Work("b")) == ["A", "B"]
    assert steps.given == [(["a", "b"], True), (["a"], False), (["a"], False)]


async def test_requests_accepted_during_a_step_of_the_thread_run_in_the_thread() -> None:
    gate = Gate()
    scheduler = Scheduler(
        "m", gate, Recorder(), queue_size=9, batch_size=9, fits_inline=lambda batch: batch[0].name != "heavy"
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(scheduler.close)
        stack.callback(gate.opened.set)
        heavy = asyncio.create_task(scheduler.submit(Work("heavy")))
        assert await asyncio.to_thread(gate.entered.wait, PATIENCE)
        light = asyncio.create_task(scheduler.submit(Work("light")))
        for _ in range(5):  # it gets no step here: two never run at once
            await asyncio.sleep(0)
        assert gate.batches == [["heavy"]]
        gate.opened.set()
        assert await answers(heavy, light) == ["HEAVY", "LIGHT"]
    assert gate.batches == [["heavy"], ["light"]]


@pytest.mark.parametrize("name", ["bad", "unclear"])
async def test_an_inline_step_that_fails_fails_its_batch_alone(name: str) -> None:
    async with in_steps() as (_, scheduler):
        failing = [asyncio.create_task(scheduler.submit(Work(each))) for each in (name, "mate")]
        assert [type(await failure(task)) for task in failing] == [ArithmeticError, ArithmeticError]
        assert await scheduler.submit(Work("later")) == "LATER"


async def test_an_inline_step_is_observed_as_any_other() -> None:
    usage = RequestUsage()
    token = REQUEST_USAGE.set(usage)
    try:
        async with in_steps() as (_, scheduler):
            await scheduler.submit(Work("a"))
    finally:
        REQUEST_USAGE.reset(token)
    assert usage.started is not None
    assert usage.finished is not None
    assert usage.engine_s == usage.finished - usage.started


async def test_a_request_cancelled_before_an_inline_step_gets_none() -> None:
    async with in_steps() as (steps, scheduler):
        leaving, staying = (asyncio.create_task(scheduler.submit(Work(name))) for name in ("leaving", "staying"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying == "STAYING"
    assert steps.given == [(["staying"], True)]


async def test_close_finishes_requests_queued_for_an_inline_step() -> None:
    async with in_steps() as (steps, scheduler):
        waiting = asyncio.create_task(scheduler.submit(Work("a")))
        await asyncio.sleep(0)
        await scheduler.close()
        assert await waiting == "A"
    assert len(steps.given) == 1


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
async def inline_step_under_way() -> AsyncIterator[tuple[Gate, Scheduler, "asyncio.Future[Any]"]]:
    """A scheduler whose first step is held, in another event loop than the running one."""
    gate = Gate()
    scheduler = Scheduler("m", gate, Recorder(), queue_size=9, batch_size=9, fits_inline=lambda _: True)
    with Elsewhere() as elsewhere:
        first = elsewhere.run(scheduler.submit(Work("first")))
        assert await asyncio.to_thread(gate.entered.wait, PATIENCE)
        try:
            yield gate, scheduler, first
        finally:
            gate.opened.set()
            async with asyncio.timeout(PATIENCE):
                await scheduler.close()


async def test_no_second_step_runs_beside_an_inline_step() -> None:
    async with inline_step_under_way() as (gate, scheduler, first):
        second = asyncio.create_task(scheduler.submit(Work("second")))
        await asyncio.sleep(0)
        with scheduler._changed:  # noqa: SLF001
            scheduler._changed.notify_all()  # noqa: SLF001  # as may happen for no reason
        scheduler._poll(asyncio.get_running_loop(), 0)  # noqa: SLF001  # as one scheduled before the step
        for _ in range(50):  # the inference thread has had the time to take it
            await asyncio.to_thread(lambda: None)
        assert scheduler.depth == 1
        assert gate.batches == [["first"]]
        gate.opened.set()
        assert await answers(cast("asyncio.Task[Any]", first), second) == ["FIRST", "SECOND"]
    assert gate.batches == [["first"], ["second"]]


async def test_close_waits_for_the_inline_step_of_another_event_loop() -> None:
    async with inline_step_under_way() as (gate, scheduler, first):
        closing = asyncio.create_task(scheduler.close())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not closing.done()
        gate.opened.set()
        async with asyncio.timeout(PATIENCE):
            await closing
            assert await first == "FIRST"


async def test_a_loop_that_stops_before_it_polls_leaves_no_request_waiting() -> None:
    async with in_steps() as (steps, scheduler):
        gone = asyncio.new_event_loop()
        task = gone.create_task(scheduler.submit(Work("gone")))
        gone.call_soon(gone.stop)  # when the submission has run, and before the poll
        await asyncio.to_thread(gone.run_forever)
        gone.close()
        async with asyncio.timeout(PATIENCE):
            assert await scheduler.submit(Work("here")) == "HERE"
            assert await scheduler.submit(Work("again")) == "AGAIN"
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  # it never finishes
    assert steps.given[0][0] == ["gone", "here"]


async def test_an_observer_that_fails_fails_one_batch_alone() -> None:
    class Failing(Recorder):
        def observe_batch(self, _model: str, size: int, _seconds: float) -> None:
            self.batches.append(size)
            if len(self.batches) == 1:
                raise ArithmeticError("no counting")

    scheduler = Scheduler("m", Steps(), Failing(), queue_size=9, batch_size=9, fits_inline=lambda _: True)
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ArithmeticError, match="no counting"):
            await scheduler.submit(Work("a"))
        assert await scheduler.submit(Work("b")) == "B"
        await scheduler.close()


# streams


@dataclass
class Letters:
    """A request whose answer is its text; each step adds a letter."""

    text: str
    done: int = 0


class Speller:
    """A step function that adds a letter to each of its examples; it records its batches and threads."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.inline: list[bool] = []

    def __call__(self, batch: Sequence[Letters]) -> list[Partial[str, str]]:
        self.batches.append([each.text for each in batch])
        self.inline.append(threading.current_thread() is threading.main_thread())
        return [self.spell(each) for each in batch]

    def spell(self, example: Letters) -> Partial[str, str]:
        example.done += 1
        letter = example.text[example.done - 1]
        return Partial([letter], example.text if example.done == len(example.text) else None)


@asynccontextmanager
async def spelling(*, inline: bool = True, **options: Any) -> AsyncIterator[tuple[Speller, Scheduler, Recorder]]:
    speller, recorder = Speller(), Recorder()
    fits = (lambda _: True) if inline else None
    scheduler = Scheduler("m", speller, recorder, queue_size=9, batch_size=8, fits_inline=fits, **options)
    try:
        async with asyncio.timeout(PATIENCE):
            yield speller, scheduler, recorder
    finally:
        await scheduler.close()


async def spelled(scheduler: Scheduler, text: str) -> tuple[list[str], str | None]:
    outputs = [output async for output in scheduler.stream(Letters(text))]
    assert [output.answer for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    return [part for output in outputs for part in output.parts], outputs[-1].answer


@pytest.mark.parametrize("inline", [True, False])
async def test_partial_answers_are_streamed_in_order_and_the_answer_with_the_last(inline: bool) -> None:
    async with spelling(inline=inline) as (speller, scheduler, _):
        assert await spelled(scheduler, "letters") == ([*"letters"], "letters")
        assert await answers(*(asyncio.create_task(spelled(scheduler, text)) for text in ("one", "three"))) == [
            ([*"one"], "one"),
            ([*"three"], "three"),
        ]
    assert speller.batches[-5:] == [["one", "three"]] * 3 + [["three"]] * 2
    assert set(speller.inline) == {inline}  # a stream stays on the event loop if its steps fit there


async def test_a_request_that_is_not_streamed_gets_the_answer_alone() -> None:
    async with spelling() as (_, scheduler, _recorder):
        assert await scheduler.submit(Letters("abc")) == "abc"


async def test_an_answer_without_parts_ends_a_stream() -> None:
    async with in_steps() as (_, scheduler):
        outputs = [output async for output in scheduler.stream(Work("a", steps=2))]
    assert outputs == [Partial((), "A")]


async def test_an_event_loop_is_woken_once_for_the_partial_answers_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, woken = asyncio.get_running_loop(), []
    wake = loop.call_soon_threadsafe

    def watched(*call: Any) -> asyncio.Handle:
        woken.append(call)
        return wake(*call)

    async with spelling(inline=False) as (speller, scheduler, _):
        streams = [asyncio.create_task(spelled(scheduler, text)) for text in ("four", "have", "more")]
        await asyncio.sleep(0)
        monkeypatch.setattr(loop, "call_soon_threadsafe", watched)
        assert [text for _, text in await answers(*streams)] == ["four", "have", "more"]
        assert len(woken) == len(speller.batches)


@pytest.mark.parametrize("inline", [True, False])
async def test_a_closed_stream_gets_no_further_step(inline: bool) -> None:
    async with spelling(inline=inline) as (speller, scheduler, recorder):
        stream = scheduler.stream(Letters("x" * 1000))
        assert (await anext(stream)).parts == ["x"]
        await stream.aclose()
        assert scheduler.depth == 0
        steps = len(speller.batches)
        assert await scheduler.submit(Letters("y")) == "y"
        assert [batch for batch in speller.batches[steps:] if "y" not in batch] == []
    assert recorder.refusals == ["cancelled"]


@pytest.mark.parametrize("inline", [True, False])
async def test_a_stream_that_is_not_read_gets_no_steps_until_it_is(inline: bool) -> None:
    long = "x" * 3 * MAX_UNREAD
    async with spelling(inline=inline) as (speller, scheduler, _):
        stream = scheduler.stream(Letters(long))
        await anext(stream)
        for _ in range(2 * MAX_UNREAD):  # each shares a step with the stream while it may take one
            await scheduler.submit(Letters("y"))
        assert sum(long in batch for batch in speller.batches) == MAX_UNREAD + 1
        assert scheduler.depth == 1
        assert [output.answer async for output in stream] == [None] * (len(long) - 2) + [long]


async def test_a_stream_that_is_not_read_expires() -> None:
    clock = [0.0]
    async with spelling(now=lambda: clock[0]) as (_, scheduler, recorder):
        stream = scheduler.stream(Letters("x" * 1000), deadline=5)
        await anext(stream)
        for _ in range(2 * MAX_UNREAD):
            await scheduler.submit(Letters("y"))
        clock[0] = 6
        with pytest.raises(DeadlineExceeded):
            async for _ in stream:
                pass
    assert recorder.refusals == ["deadline"]


async def test_a_full_queue_rejects_a_stream() -> None:
    async with busy(queue_size=1) as bench:
        await bench.submit(Work("a"))
        with pytest.raises(Overloaded):
            await anext(bench.scheduler.stream(Work("b")))
        bench.gate.opened.set()


async def test_an_exception_ends_a_stream_with_it() -> None:
    async with in_steps() as (_, scheduler):
        with pytest.raises(ArithmeticError):
            await anext(scheduler.stream(Work("bad")))


# interactive and bulk


async def test_bulk_requests_never_make_an_interactive_one_rejected() -> None:
    async with busy(queue_size=2) as bench:
        bulk = [asyncio.create_task(bench.scheduler.submit(Work(name), bulk=True)) for name in "abcdefgh"]
        await asyncio.sleep(0)
        typed = await bench.submit(Work("x"), Work("y"))
        with pytest.raises(Overloaded, match="m: the queue is full with 2 requests"):
            await bench.scheduler.submit(Work("z"))
        bench.gate.opened.set()
        assert await answers(*bulk[:2], *typed) == ["A", "B", "X", "Y"]
        assert [type(await failure(task)) for task in bulk[2:]] == [Overloaded] * 6


async def test_interactive_and_bulk_requests_take_turns() -> None:
    async with busy(batch_size=2) as bench:
        bulk = [asyncio.create_task(bench.scheduler.submit(Work(name, steps=2), bulk=True)) for name in "abc"]
        await asyncio.sleep(0)
        typed = await bench.submit(*(Work(name) for name in "vwxyz"))
        bench.gate.opened.set()
        await answers(*bulk, *typed)
    assert bench.gate.batches == [
        ["first"],
        *(["a", "b"], ["v", "w"], ["c", "a"], ["x", "y"], ["b", "c"], ["z"]),
    ]


class Countdown:
    """A predictor whose example is a number of steps; its answer is that number."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def prepare(self, payload: int) -> list[int]:
        return [payload, payload]  # in all, still to come

    def step(self, examples: Sequence[list[int]]) -> list[int | None]:
        self.batches.append(len(examples))
        for example in examples:
            example[1] -= 1
        return [example[0] if not example[1] else None for example in examples]


def test_answer_all_runs_steps_until_each_example_has_its_answer() -> None:
    predictor = Countdown()
    assert answer_all(predictor, [predictor.prepare(steps) for steps in (2, 1, 3)]) == [2, 1, 3]
    assert predictor.batches == [3, 2, 1]


def test_answer_all_of_nothing_is_nothing() -> None:
    predictor = Countdown()
    assert answer_all(predictor, []) == []
    assert predictor.batches == []
