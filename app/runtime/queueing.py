"""Queued examples of one model: their bounds, and the order in which they get their steps."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, Final, TypeAlias

from app.runtime.metrics import RequestUsage
from app.runtime.predictor import Partial

MAX_SHORT_STEPS: Final = 8  # a run of five words takes five steps, a page as context eight
MAX_UNREAD: Final = 64  # partial answers of a stream; with so many its example gets no step until one is read

Stream: TypeAlias = asyncio.Queue[Partial[Any, Any] | BaseException]


@dataclass(eq=False, slots=True)
class Job:
    """An accepted example, and the future of its answer or the stream of its partial answers."""

    example: Any
    deadline: float | None
    bulk: bool
    accepted: float
    loop: asyncio.AbstractEventLoop
    usage: RequestUsage | None  # of the HTTP request
    future: asyncio.Future[Any]
    stream: Stream | None
    steps: int = 0
    sent: int = 0  # partial answers of the stream, counted where steps run,
    read: int = 0  # and on the event loop
    cancelled: bool = False

    @property
    def unread(self) -> int:
        """Return the number of partial answers that the client has not read."""
        return self.sent - self.read

    def resolve(self, output: Any) -> None:
        """Deliver an answer, a partial answer or an error. Call it in the event loop of the job."""
        if self.stream is not None:
            self.stream.put_nowait(output)
        elif not self.future.done():
            if isinstance(output, BaseException):
                self.future.set_exception(output)
            else:
                self.future.set_result(output)


class JobQueue:
    """The queued jobs of a model in two lanes, interactive and bulk, each of at most `size` when a job is added.

    The lanes take turns while both have jobs, and no batch mixes them: a keystroke waits for one bulk step at most,
    and bulk jobs keep half of the steps. No number of bulk jobs makes an interactive one rejected.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lanes: dict[bool, list[Job]] = {False: [], True: []}  # by Job.bulk, in the order of their last steps
        self._bulk_next = False

    def __len__(self) -> int:
        return len(self._lanes[False]) + len(self._lanes[True])

    def __iter__(self) -> Iterator[Job]:
        return chain.from_iterable(self._lanes.values())

    def waiting(self, *, bulk: bool) -> int:
        """Return the number of queued jobs of one kind."""
        return len(self._lanes[bulk])

    def is_full(self, *, bulk: bool) -> bool:
        """Return whether a new job of this kind is to be rejected."""
        return len(self._lanes[bulk]) >= self._size

    def add(self, jobs: Iterable[Job]) -> None:
        """Append new jobs, and those that need another step, to their lanes, also to full ones."""
        for job in jobs:
            self._lanes[job.bulk].append(job)

    def remove(self, jobs: Iterable[Job]) -> None:
        """Remove the jobs that are queued."""
        removed = set(jobs)
        for bulk, lane in self._lanes.items():
            self._lanes[bulk] = [job for job in lane if job not in removed]

    def take(self, room: int, *, blocked: bool) -> list[Job]:
        """Remove the next batch, of at most `room` jobs of one lane, also of `blocked` ones; empty if there is none."""
        for bulk in (self._bulk_next, not self._bulk_next):
            lane = self._lanes[bulk]
            if lane and (batch := _batch(lane, room, blocked=blocked)):
                self._bulk_next = not bulk
                taken = set(batch)
                self._lanes[bulk] = [job for job in lane if job not in taken]
                return batch
        return []


def _batch(lane: Sequence[Job], room: int, *, blocked: bool) -> list[Job]:
    """Return the next jobs of a lane: at most half of them with few steps so far while there are long ones.

    A keystroke therefore never waits for long texts; of these the oldest come first, so that the first of many finishes
    before the last. Among the others those with the fewest steps come first: a keystroke takes one, a search several.
    The oldest job is the first of the batch, so that each gets its steps: a predictor may defer the others.
    """
    ready = lane if blocked else [job for job in lane if job.sent - job.read < MAX_UNREAD]
    if len(ready) <= 1:  # as most often
        return [*ready]
    short = sorted((job for job in ready if job.steps < MAX_SHORT_STEPS), key=attrgetter("steps"))
    long = sorted((job for job in ready if job.steps >= MAX_SHORT_STEPS), key=attrgetter("accepted"))
    count = min(len(short), max(room // 2, room - len(long)))
    first = long[:1] or ([min(short, key=attrgetter("accepted"))] if len(short) > room else [])
    return [*first, *(job for job in short[:count] if job not in first), *long[1 : room - count]][:room]
