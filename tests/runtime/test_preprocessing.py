"""The threads in which slow payloads are checked."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from app.errors import DeadlineExceeded, Malformed, NotReady, Overloaded
from app.runtime.preprocessing import NICE, THREADS, Preparing

pytestmark = pytest.mark.anyio


class Refusals:
    """An observer that remembers what was refused, and how long the rest took."""

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
async def preparing(
    refusals: Refusals, *, queue_size: int = 8, now: Callable[[], float] = lambda: 0.0
) -> AsyncIterator[Preparing]:
    threads = Preparing(refusals, queue_size=queue_size, now=now)
    try:
        yield threads
    finally:
        await threads.close()


@asynccontextmanager
async def busy(threads: Preparing, count: int = THREADS) -> AsyncIterator[None]:
    """So many threads have work, until the block ends."""
    begun = [threading.Event() for _ in range(count)]
    go = threading.Event()

    def work(event: threading.Event) -> bool:
        event.set()
        return go.wait(30)

    working = [asyncio.ensure_future(threads.run("a", partial(work, event))) for event in begun]
    for event in begun:
        assert await asyncio.to_thread(event.wait, 30)
    try:
        yield
    finally:
        go.set()
        assert all(await asyncio.gather(*working))


async def test_a_payload_is_prepared_in_a_thread(refusals: Refusals) -> None:
    async with preparing(refusals) as threads:
        name = await threads.run("a", lambda: threading.current_thread().name)
    assert name.startswith("preparing")


async def test_what_it_took_to_be_prepared_is_told(refusals: Refusals) -> None:
    clock = iter((10.0, 12.5))
    async with preparing(refusals, now=lambda: next(clock)) as threads:
        await threads.run("a", lambda: None)
    assert refusals.seconds == [2.5]


async def test_an_error_is_the_callers(refusals: Refusals) -> None:
    def fail() -> None:
        raise Malformed("image: expected better")

    async with preparing(refusals) as threads:
        with pytest.raises(Malformed, match="expected better"):
            await threads.run("a", fail)
        assert await threads.run("a", lambda: 1) == 1
    assert refusals.counted == []


async def test_no_more_are_prepared_at_once_than_there_are_threads(refusals: Refusals) -> None:
    begun = list[int]()
    async with preparing(refusals) as threads:
        async with busy(threads):
            waiting = [asyncio.ensure_future(threads.run("a", partial(begun.append, place))) for place in range(4)]
            await asyncio.sleep(0)
            assert begun == []
        await asyncio.gather(*waiting)
    assert sorted(begun) == [0, 1, 2, 3]


async def test_models_take_turns_and_each_ones_payloads_come_in_their_order(refusals: Refusals) -> None:
    begun = list[str]()
    async with preparing(refusals) as threads, busy(threads, THREADS - 1):  # one thread is left, and then none
        async with busy(threads, 1):
            work = [(name[0], partial(begun.append, name)) for name in ("a1", "a2", "a3", "b1", "c1", "b2")]
            waiting = [asyncio.ensure_future(threads.run(*each)) for each in work]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
    assert begun == ["a1", "b1", "c1", "a2", "b2", "a3"]


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
async def test_threads_let_others_go_before(refusals: Refusals) -> None:
    async with preparing(refusals) as threads:
        nice = await threads.run("a", lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert nice == min(19, os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICE)


async def test_one_more_than_may_wait_is_refused_and_later_taken(refusals: Refusals) -> None:
    async with preparing(refusals, queue_size=2) as threads:
        async with busy(threads):
            waiting = [asyncio.ensure_future(threads.run("a", lambda: 1)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="b: too many"):
                await threads.run("b", lambda: 1)
        await asyncio.gather(*waiting)
        assert await threads.run("b", lambda: 2) == 2
    assert refusals.counted == [("b", "overloaded")]


async def test_whose_deadline_passes_is_told_and_not_begun(refusals: Refusals) -> None:
    begun = list[str]()
    async with preparing(refusals, now=lambda: 5.0) as threads:
        async with busy(threads):
            with pytest.raises(DeadlineExceeded, match="a: the deadline passed"):
                await threads.run("a", lambda: begun.append("late"), deadline=5.0)
        await threads.run("a", lambda: begun.append("in time"), deadline=1e9)
    assert begun == ["in time"]
    assert refusals.counted == [("a", "deadline")]


async def test_who_leaves_makes_room_and_is_not_begun(refusals: Refusals) -> None:
    begun = list[str]()
    async with preparing(refusals, queue_size=1) as threads:
        async with busy(threads):
            leaving = asyncio.ensure_future(threads.run("a", lambda: begun.append("left")))
            await asyncio.sleep(0)
            leaving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await leaving
            staying = asyncio.ensure_future(threads.run("a", lambda: begun.append("stayed")))
            await asyncio.sleep(0)
        await staying
    assert begun == ["stayed"]
    assert refusals.counted == [("a", "cancelled")]


async def test_what_was_accepted_is_finished_and_nothing_more_is(refusals: Refusals) -> None:
    async with preparing(refusals) as threads:
        async with busy(threads):
            accepted = asyncio.ensure_future(threads.run("a", lambda: 1))
            await asyncio.sleep(0)
            closing = asyncio.ensure_future(threads.close())
            await asyncio.sleep(0)
            with pytest.raises(NotReady, match="a: is shutting down"):
                await threads.run("a", lambda: 1)
        await closing
        assert await accepted == 1
