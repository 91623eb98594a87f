"""Changes of models in several workers: one at a time, each in all of them or in none.

It takes two steps: all read and prove the version, and once the last has, all switch to it.
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

Save: TypeAlias = Callable[[str, str], str | None]  # notes a model's version for the next start, or tells why it can't

CHANGE_S: Final = 60.0  # that workers may take to read a version, or to switch to it

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Child:
    """A worker's process, and the supervisor's end of its line."""

    place: int
    process: BaseProcess
    line: Line
    started: float
    listening: bool = True  # to what it says; its line ends a moment before it does


@dataclass(eq=False)
class _Change:
    """A version that all workers are to serve."""

    number: int
    model: str
    version: str
    save: bool
    askers: list[tuple[Child, int]]  # and the number of each one's question
    switching: bool = False  # all have read it
    waiting: set[Child] = field(default_factory=set)  # for their answers
    due: float = 0.0  # when these are waited for no longer
    previous: str | None = None


class Changes:
    """Changes of models, one at a time, each in all workers or in none."""

    def __init__(
        self,
        workers: Callable[[], Collection[Child]],
        versions: Mapping[str, str],
        save: Save,
        now: Callable[[], float],
    ) -> None:
        """`workers` are those that run, `versions`, by name, what is to answer at first."""
        self.versions = dict(versions)  # that are to answer, by name
        self._workers = workers
        self._save = save
        self._now = now
        self._queue: deque[_Change] = deque()  # the first is under way
        self._numbers = itertools.count(1)

    @property
    def due(self) -> float | None:
        """When the one that is under way has taken too long; None if there is none."""
        return self._queue[0].due if self._queue else None

    def ask(self, asker: Child, message: Message) -> None:
        """A worker wants a version to be served; several may want the same."""
        model, version, save = message["model"], message["version"], message["save"]
        for change in self._queue:
            if (change.model, change.version, change.save) == (model, version, save):
                change.askers.append((asker, message["number"]))
                return
        self._queue.append(_Change(next(self._numbers), model, version, save, [(asker, message["number"])]))
        if len(self._queue) == 1:
            self._begin()

    def note(self, worker: Child, message: Message) -> None:
        """A worker has read the version, or could not, or has switched."""
        change = self._queue[0] if self._queue else None
        if change is None or change.number != message["number"] or worker not in change.waiting:
            return  # it comes too late
        if message["error"]:
            self._drop(change, message["error"])
            return
        change.previous = message["previous"] or change.previous
        change.waiting.discard(worker)
        self._go_on(change)

    def lose(self, worker: Child) -> None:
        """A worker has ended; the one that takes its place begins with the versions that are to answer then."""
        for queued in self._queue:  # who has ended is told nothing
            queued.askers = [(asker, number) for asker, number in queued.askers if asker is not worker]
        change = self._queue[0] if self._queue else None
        if change is None or worker not in change.waiting:
            return
        change.waiting.discard(worker)
        if change.switching:
            self._go_on(change)
        else:
            self._drop(change, described(NotReady(f"{change.model}: a worker ended while {change.version} was read")))

    def give_up(self) -> None:
        """The first has taken too long. Who can't be brought to switch must end, so that all answer alike."""
        change = self._queue[0]
        late = ", ".join(str(worker.place) for worker in change.waiting)
        if change.switching:
            for worker in change.waiting:
                log.error("worker %s does not switch %s to %s and is killed", late, change.model, change.version)
                worker.process.kill()
            change.due = self._now() + CHANGE_S
        else:
            self._drop(
                change, described(NotReady(f"{change.model}: worker {late} has not read {change.version} in time"))
            )

    def _begin(self) -> None:
        change = self._queue[0]
        self._order(change, "stage", model=change.model, version=change.version)

    def _go_on(self, change: _Change) -> None:
        """To the next step, once all have taken the last."""
        if change.waiting:
            return
        if not change.switching:
            change.switching = True
            self.versions[change.model] = change.version
            self._order(change, "switch")
        else:
            unsaved = self._save(change.model, change.version) if change.save else None
            if unsaved:
                log.warning("%s: %s serves until a restart: %s", change.model, change.version, unsaved)
            self._finish(change, error=None, unsaved=unsaved)

    def _drop(self, change: _Change, error: Mapping[str, str]) -> None:
        """All or none: what others have read is not used."""
        for worker in self._workers():
            send(worker.line, "drop", change.number)
        self._finish(change, error=error, unsaved=None)

    def _order(self, change: _Change, kind: str, **fields: str) -> None:
        change.waiting = set(self._workers())
        change.due = self._now() + CHANGE_S
        for worker in change.waiting:
            send(worker.line, kind, change.number, **fields)

    def _finish(self, change: _Change, *, error: Mapping[str, str] | None, unsaved: str | None) -> None:
        """Tell who asked: the first that it's done, the others that nothing was left to do."""
        self._queue.popleft()
        previous = change.previous
        for asker, number in change.askers:
            send(asker.line, "done", number, error=error, previous=previous, unsaved=unsaved)
            previous = change.version
        if self._queue:
            self._begin()
