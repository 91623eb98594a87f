"""Two-phase rollout of versions to several workers: one at a time, each in all of them or in none.

All workers load and verify the version; once the last has, all switch to it.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Final, TypeAlias

from app.errors import NotReady
from app.runtime.worker import Line, Message, described, send

Save: TypeAlias = Callable[[str, str], str | None]  # saves a version in the store; returns why not, if so

CHANGE_S: Final = 60.0  # time limit for workers to load a version, and to switch to it

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Child:
    """A worker process and the supervisor's end of its channel."""

    place: int
    process: BaseProcess
    line: Line
    started: float
    listening: bool = True  # False once its channel is closed, shortly before it exits


@dataclass(eq=False)
class _Change:
    """One version's rollout."""

    number: int
    model: str
    version: str
    save: bool
    requests: list[tuple[Child, int]]  # the workers that requested it, and their requests' numbers
    switching: bool = False  # all have loaded it
    waiting: set[Child] = field(default_factory=set)  # workers whose reply is awaited
    due: float = 0.0  # when their time is over
    previous: str | None = None


class Changes:
    """A queue of rollouts: one runs at a time, each in all workers or in none."""

    def __init__(
        self,
        workers: Callable[[], Collection[Child]],
        versions: Mapping[str, str],
        save: Save,
        now: Callable[[], float],
    ) -> None:
        """`workers`: returns the running ones; `versions`: served at first, by model name."""
        self.versions = dict(versions)  # to serve, by name
        self._workers = workers
        self._save = save
        self._now = now
        self._queue: deque[_Change] = deque()  # the first is running
        self._numbers = itertools.count(1)

    @property
    def due(self) -> float | None:
        """The time at which the running rollout times out; None if there is none."""
        return self._queue[0].due if self._queue else None

    def ask(self, worker: Child, message: Message) -> None:
        """Queue a worker's request for a rollout; requests for the same version share one."""
        model, version, save = message["model"], message["version"], message["save"]
        for change in self._queue:
            if (change.model, change.version, change.save) == (model, version, save):
                change.requests.append((worker, message["number"]))
                return
        self._queue.append(_Change(next(self._numbers), model, version, save, [(worker, message["number"])]))
        if len(self._queue) == 1:
            self._start()

    def note(self, worker: Child, message: Message) -> None:
        """Process a worker's reply: it has loaded the version, failed to, or switched to it."""
        change = self._queue[0] if self._queue else None
        if change is None or change.number != message["number"] or worker not in change.waiting:
            return  # a late reply
        if message["error"]:
            self._drop(change, message["error"])
            return
        change.previous = message["previous"] or change.previous
        change.waiting.discard(worker)
        self._advance(change)

    def lose(self, worker: Child) -> None:
        """Process a worker's exit; its replacement starts with the versions to serve then."""
        for queued in self._queue:
            queued.requests = [(requester, number) for requester, number in queued.requests if requester is not worker]
        change = self._queue[0] if self._queue else None
        if change is None or worker not in change.waiting:
            return
        change.waiting.discard(worker)
        if change.switching:
            self._advance(change)
        else:
            error = NotReady(f"{change.model}: a worker exited while {change.version} was loaded")
            self._drop(change, described(error))

    def give_up(self) -> None:
        """Time out the running rollout. Workers that do not switch are killed, so that all serve the same version."""
        change = self._queue[0]
        late = ", ".join(str(worker.place) for worker in change.waiting)
        if change.switching:
            for worker in change.waiting:
                log.error("worker %s did not switch %s to %s in time, killed", late, change.model, change.version)
                worker.process.kill()
            change.due = self._now() + CHANGE_S
        else:
            error = NotReady(f"{change.model}: worker {late} did not load {change.version} in time")
            self._drop(change, described(error))

    def _start(self) -> None:
        change = self._queue[0]
        self._send_all(change, "stage", model=change.model, version=change.version)

    def _advance(self, change: _Change) -> None:
        """Enter the next phase once all workers have replied."""
        if change.waiting:
            return
        if not change.switching:
            change.switching = True
            self.versions[change.model] = change.version
            self._send_all(change, "switch")
        else:
            unsaved = self._save(change.model, change.version) if change.save else None
            if unsaved:
                log.warning("%s: %s is served until the next restart: %s", change.model, change.version, unsaved)
            self._finish(change, error=None, unsaved=unsaved)

    def _drop(self, change: _Change, error: Mapping[str, str]) -> None:
        """Abort the rollout: workers discard the version that they have loaded."""
        for worker in self._workers():
            send(worker.line, "drop", change.number)
        self._finish(change, error=error, unsaved=None)

    def _send_all(self, change: _Change, kind: str, **fields: str) -> None:
        change.waiting = set(self._workers())
        change.due = self._now() + CHANGE_S
        for worker in change.waiting:
            send(worker.line, kind, change.number, **fields)

    def _finish(self, change: _Change, *, error: Mapping[str, str] | None, unsaved: str | None) -> None:
        """Reply to all requests; to those after the first, nothing changed."""
        self._queue.popleft()
        previous = change.previous
        for worker, number in change.requests:
            send(worker.line, "done", number, error=error, previous=previous, unsaved=unsaved)
            previous = change.version
        if self._queue:
            self._start()
