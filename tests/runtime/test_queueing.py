"""The order of queued examples, simulated without threads."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from app.runtime.queueing import Job, JobQueue

BULK_STEP, TYPED_STEP = 0.012, 0.002  # seconds
STEPS = 20  # of a document
BATCH = 4


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


class Flood:
    """Documents at four times the capacity, and a person who types 20 keys a second, on a clock of the steps."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.queue = JobQueue(32)
        self.now = 0.0
        self.waits: list[float] = []  # of keystrokes
        self.finished = 0  # documents
        self.rejected = {"document": 0, "key": 0}
        self._loop = loop

    def run(self, seconds: float, *, documents_per_s: float, keys_per_s: float) -> None:
        arrivals = sorted(
            [(n / documents_per_s, "document") for n in range(int(seconds * documents_per_s))]
            + [(n / keys_per_s, "key") for n in range(int(seconds * keys_per_s))]
        )
        while arrivals or len(self.queue):
            while arrivals and arrivals[0][0] <= self.now:
                self.arrive(*arrivals.pop(0))
            self.step(self.queue.take(BATCH, blocked=False))

    def arrive(self, time: float, example: str) -> None:
        bulk = example == "document"
        if self.queue.is_full(bulk=bulk):
            self.rejected[example] += 1
        else:
            future: asyncio.Future[Any] = self._loop.create_future()
            self.queue.add([Job(example, None, bulk, time, self._loop, None, future, None)])

    def step(self, batch: list[Job]) -> None:
        self.now += BULK_STEP if batch and batch[0].bulk else TYPED_STEP
        for job in batch:
            job.steps += 1
        self.finished += sum(job.bulk and job.steps == STEPS for job in batch)
        self.queue.add([job for job in batch if job.bulk and job.steps < STEPS])
        self.waits += [self.now - job.accepted for job in batch if not job.bulk]


def test_a_flood_of_documents_rejects_no_keystroke_and_delays_none_by_more_than_a_step(
    loop: asyncio.AbstractEventLoop,
) -> None:
    flood = Flood(loop)
    capacity = BATCH / STEPS / BULK_STEP  # documents a second
    flood.run(20, documents_per_s=4 * capacity, keys_per_s=20)
    assert flood.rejected["key"] == 0
    assert len(flood.waits) == 400
    assert max(flood.waits) <= BULK_STEP + 2 * TYPED_STEP
    assert flood.rejected["document"] > 2 * flood.finished


def test_a_flood_of_keystrokes_leaves_half_of_the_steps_to_documents(loop: asyncio.AbstractEventLoop) -> None:
    flood = Flood(loop)
    flood.run(5, documents_per_s=2, keys_per_s=10_000)
    assert flood.rejected["key"] > 0
    assert (flood.rejected["document"], flood.finished) == (0, 10)


def test_documents_of_a_flood_finish_in_order(loop: asyncio.AbstractEventLoop) -> None:
    queue = JobQueue(100)
    jobs = [Job(n, None, True, float(n), loop, None, loop.create_future(), None) for n in range(12)]
    queue.add(jobs)
    finished = list[int]()
    while batch := queue.take(BATCH, blocked=False):
        for job in batch:
            job.steps += 1
        finished += [job.example for job in batch if job.steps == STEPS]
        queue.add([job for job in batch if job.steps < STEPS])
    assert finished == sorted(finished)
