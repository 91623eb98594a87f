"""Queued examples of one model: their bounds, and the order in which they get their steps."""

import asyncio
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
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
    account: RequestUsage | None  # of the HTTP request
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


class Lane:
    """Jobs of one kind: those with few steps so far, in the order of their steps, and long ones, oldest first.

    A keystroke therefore never waits for long texts, and the first of many long texts finishes before the last.
    """

    def __init__(self) -> None:
        self._short: list[Job] = []  # fewer than MAX_SHORT_STEPS steps so far
        self._long: list[Job] = []

    def __len__(self) -> int:
        return len(self._short) + len(self._long)

    def __iter__(self) -> Iterator[Job]:
        return chain(self._short, self._long)

    def add(self, job: Job) -> None:
        """Add a new job, or one that needs another step."""
        if job.steps < MAX_SHORT_STEPS:
            self._short.append(job)
        else:
            insort(self._long, job, key=lambda job: job.accepted)

    def remove(self, jobs: Iterable[Job]) -> None:
        """Remove the jobs that are queued here."""
        removed = set(jobs)
        self._short = [job for job in self._short if job not in removed]
        self._long = [job for job in self._long if job not in removed]

    def take(self, room: int, *, blocked: bool) -> list[Job]:
        """Remove a batch of at most `room` jobs: at most half of it short ones while long ones fill the rest.

        The oldest long job comes first, then the short ones: a predictor may defer the last to the next step.
        """
        short, long = (
            [job for job in jobs if blocked or job.unread < MAX_UNREAD] for jobs in (self._short, self._long)
        )
        count = min(len(short), max(room // 2, room - len(long)))
        batch = [*long[:1], *short[:count], *long[1 : room - count]]
        self.remove(batch)
        return batch


class JobQueue:
    """The queued jobs of a model in two lanes, interactive and bulk, each of at most `size` when a job is added.

    The lanes take turns while both have jobs, and no batch mixes them: a keystroke waits for one bulk step at most,
    and bulk jobs keep half of the steps. No number of bulk jobs makes an interactive one rejected.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._interactive, self._bulk = Lane(), Lane()
        self._bulk_next = False

    def __len__(self) -> int:
        return len(self._interactive) + len(self._bulk)

    def __iter__(self) -> Iterator[Job]:
        return chain(self._interactive, self._bulk)

    def waiting(self, *, bulk: bool) -> int:
        """Return the number of queued jobs of one kind."""
        return len(self._bulk if bulk else self._interactive)

    def is_full(self, *, bulk: bool) -> bool:
        """Return whether a new job of this kind is to be rejected."""
        return self.waiting(bulk=bulk) >= self._size

    def add(self, jobs: Sequence[Job]) -> None:
        """Append jobs to their lanes, also to full ones."""
        for job in jobs:
            (self._bulk if job.bulk else self._interactive).add(job)

    def remove(self, jobs: Sequence[Job]) -> None:
        """Remove the jobs that are queued."""
        for lane in (self._interactive, self._bulk):
            lane.remove(jobs)

    def take(self, room: int, *, blocked: bool) -> list[Job]:
        """Remove the next batch, of at most `room` jobs of one lane, also of `blocked` ones; empty if there is none."""
        lanes = (self._bulk, self._interactive) if self._bulk_next else (self._interactive, self._bulk)
        for lane in lanes:
            if batch := lane.take(room, blocked=blocked):
                self._bulk_next = lane is self._interactive
                return batch
        return []
