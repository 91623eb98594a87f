"""The thread pool that prepares slow payloads."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from app.errors import DeadlineExceeded, Malformed, NotReady, Overloaded
from app.runtime.preprocessing import NICE, THREADS, Preprocessor

pytestmark = pytest.mark.anyio


class Refusals:
    """An observer that records rejections and preparation times."""

    def __init__(self) -> None:
        self.counted: list[tuple[str, str]] = []
        self.seconds: list[float] = []

    def count_refusal(self, model: str, reason: str) -> None:
        self.counted.append((model, reason))

    def observe_prepare(self, _model: str, seconds: float) -> None:
        self.seconds.append(seconds)

    def observe_batch(self, model: str, size: int, seconds: float) -> None: ...

    def observe_wait(self, model: str, seconds: float) -> None: ...

    def set_queue(self, model: str, depth: int) -> None: ...


@pytest.fixture
def refusals() -> Refusals:
    return Refusals()


@asynccontextmanager
async def preprocessor(
    refusals: Refusals, *, queue_size: int = 8, now: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[Preprocessor]:
    threads = Preprocessor(refusals, queue_size=queue_size, now=now)
    try:
        yield threads
    finally:
        await threads.close()


@asynccontextmanager
async def busy(threads: Preprocessor, count: int = THREADS) -> AsyncIterator[None]:
    """Keep `count` threads busy until the block ends."""
    started = [threading.Event() for _ in range(count)]
    go = threading.Event()

    def work(event: threading.Event) -> bool:
        event.set()
        return go.wait(30)

    working = [asyncio.ensure_future(threads.run("a", partial(work, event))) for event in started]
    for event in started:
        assert await asyncio.to_thread(event.wait, 30)
    try:
        yield
    finally:
        go.set()
        assert all(await asyncio.gather(*working))


async def test_a_payload_is_prepared_in_a_thread(refusals: Refusals) -> None:
    async with preprocessor(refusals) as threads:
        name = await threads.run("a", lambda: threading.current_thread().name)
    assert name.startswith("preprocessing")


async def test_preparation_time_is_observed(refusals: Refusals) -> None:
    clock = iter((10.0, 12.5))
    async with preprocessor(refusals, now=lambda: next(clock)) as threads:
        await threads.run("a", lambda: None)
    assert refusals.seconds == [2.5]


async def test_an_error_is_raised_to_the_caller(refusals: Refusals) -> None:
    def fail() -> None:
        raise Malformed("image: expected better")

    async with preprocessor(refusals) as threads:
        with pytest.raises(Malformed, match="expected better"):
            await threads.run("a", fail)
        assert await threads.run("a", lambda: 1) == 1
    assert refusals.counted == []


async def test_at_most_one_payload_per_thread_is_prepared_at_once(refusals: Refusals) -> None:
    started = list[int]()
    async with preprocessor(refusals) as threads:
        async with busy(threads):
            waiting = [asyncio.ensure_future(threads.run("a", partial(started.append, place))) for place in range(4)]
            await asyncio.sleep(0)
            assert started == []
        await asyncio.gather(*waiting)
    assert sorted(started) == [0, 1, 2, 3]


async def test_models_are_served_round_robin_and_each_in_order(refusals: Refusals) -> None:
    started = list[str]()
    async with preprocessor(refusals) as threads, busy(threads, THREADS - 1):  # one thread is left, and then none
        async with busy(threads, 1):
            work = [(name[0], partial(started.append, name)) for name in ("a1", "a2", "a3", "b1", "c1", "b2")]
            waiting = [asyncio.ensure_future(threads.run(*each)) for each in work]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
    assert started == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_bulk_payloads_neither_delay_nor_displace_interactive_ones(refusals: Refusals) -> None:
    started = list[str]()
    async with preprocessor(refusals, queue_size=2) as threads, busy(threads, THREADS - 1):
        async with busy(threads, 1):
            waiting = list[asyncio.Future[None]]()
            for name in ("page 1", "page 2", "page 3", "page 4"):
                waiting.append(asyncio.ensure_future(threads.run("a", partial(started.append, name), bulk=True)))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await threads.run("a", lambda: None, bulk=True)
            waiting.append(asyncio.ensure_future(threads.run("a", partial(started.append, "photograph"))))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
    assert started == ["page 1", "photograph", "page 2", "page 3", "page 4"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
async def test_threads_run_at_lower_priority(refusals: Refusals) -> None:
    async with preprocessor(refusals) as threads:
        nice = await threads.run("a", lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert nice == min(19, os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICE)


async def test_a_full_queue_rejects_and_accepts_again_later(refusals: Refusals) -> None:
    async with preprocessor(refusals, queue_size=2) as threads:
        async with busy(threads):
            waiting = [asyncio.ensure_future(threads.run("a", lambda: 1)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="b: the preprocessing queue is full"):
                await threads.run("b", lambda: 1)
        await asyncio.gather(*waiting)
        assert await threads.run("b", lambda: 2) == 2
    assert refusals.counted == [("b", "overloaded")]


async def test_an_expired_payload_raises_and_is_not_prepared(refusals: Refusals) -> None:
    started = list[str]()
    async with preprocessor(refusals, now=lambda: 5.0) as threads:
        async with busy(threads):
            with pytest.raises(DeadlineExceeded, match="a: the deadline passed"):
                await threads.run("a", lambda: started.append("late"), deadline=5.0)
        await threads.run("a", lambda: started.append("in time"), deadline=1e9)
    assert started == ["in time"]
    assert refusals.counted == [("a", "deadline")]


async def test_a_cancelled_payload_makes_room_and_is_not_prepared(refusals: Refusals) -> None:
    started = list[str]()
    async with preprocessor(refusals, queue_size=1) as threads:
        async with busy(threads):
            leaving = asyncio.ensure_future(threads.run("a", lambda: started.append("left")))
            await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            staying = asyncio.ensure_future(threads.run("a", lambda: started.append("stayed")))
            await asyncio.sleep(0)
        await staying
    assert started == ["stayed"]
    assert refusals.counted == [("a", "cancelled")]


async def test_close_finishes_accepted_payloads_and_rejects_new_ones(refusals: Refusals) -> None:
    async with preprocessor(refusals) as threads:
        async with busy(threads):
            accepted = asyncio.ensure_future(threads.run("a", lambda: 1))
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(threads.close())
            await asyncio.sleep(0)
            with pytest.raises(NotReady, match="a: is shutting down"):
                await threads.run("a", lambda: 1)
        await closing
        assert await accepted == 1
