"""Keeps several workers at one port: starts them, starts again what ended, passes on what they say of changes.

Workers are forked, and this process runs no thread of its own, so that a fork finds no lock held. They accept from one
listening socket, which stays open whatever happens to one of them.
"""

import logging
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import connection
from typing import Final, TypeAlias

from app.errors import SeqserveError
from app.runtime.rollout import Changes, Child, Save
from app.runtime.worker import Garbled, Line, receive, restored, send

Work: TypeAlias = Callable[[Line, int, Mapping[str, str]], None]  # its end, its place, which versions are to answer

STABLE_S: Final = 10.0  # a worker that lived so long is no sign of a lasting fault
FIRST_PAUSE_S: Final = 0.25  # before a worker that ended sooner starts again; each time twice as long
LONGEST_PAUSE_S: Final = 15.0
KILL_S: Final = 10.0  # beyond the grace, for batches that run
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_fork = multiprocessing.get_context("fork")
log = logging.getLogger(__name__)


class Supervisor:
    """Runs workers until it is told to stop."""

    def __init__(
        self,
        work: Work,
        *,
        workers: int,
        versions: Mapping[str, str],
        save: Save,
        buried: Callable[[int, str], None],
        grace_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Every worker does `work`. `buried` is told the place and the name of one that ended."""
        self._work = work
        self._count = workers
        self._buried = buried
        self._grace_s = grace_s
        self._now = now
        self._workers: dict[int, Child] = {}  # by place
        self._changes = Changes(self._workers.values, versions, save, now)
        self._due: dict[int, float] = {}  # when a place gets its next worker
        self._pauses: dict[int, float] = {}  # the last one of each place
        self._proved = False  # one worker has served: what ends later had no wrong settings
        self._stop_due: float | None = None  # set once it is told to stop: what is left then is killed
        self._peace = True

    def run(self, listening: socket.socket) -> bool:
        """Serve until SIGTERM or SIGINT; whether all workers ended in peace then.

        `listening` is closed here once no more connections shall be taken. Raise what kept the first worker from
        starting.
        """
        with _bell() as bell:
            try:
                self._start(0)
                while self._workers or self._stop_due is None:
                    self._turn(bell, listening)
            finally:
                self._abandon()
        return self._peace

    def _abandon(self) -> None:
        """End the workers that are left: none, unless an error ends this process."""
        for worker in self._workers.values():
            worker.line.close()  # else it might wait for an answer before it ends
            worker.process.terminate()
        due = self._now() + self._grace_s + KILL_S
        for worker in self._workers.values():
            worker.process.join(max(0.0, due - self._now()))
            if worker.process.exitcode is None:
                log.error("worker %d has not ended in time and is killed", worker.place)
                worker.process.kill()
                worker.process.join()

    def _turn(self, bell: socket.socket, listening: socket.socket) -> None:
        """Wait for something to happen, and do what it asks for."""
        lines = {worker.line: worker for worker in self._workers.values() if worker.listening}
        ends = {worker.process.sentinel: worker for worker in self._workers.values()}
        happened = connection.wait([bell, *lines, *ends], self._patience())
        if bell in happened:
            self._obey(bell.recv(64), listening)
        for line, worker in lines.items():
            if line in happened:
                self._hear(worker)
        for end, worker in ends.items():
            if end in happened:
                self._bury(worker)
        self._look_at_the_clock()

    def _patience(self) -> float | None:
        """Seconds until something is due."""
        dues = [due for due in (self._changes.due, self._stop_due) if due is not None]
        if self._changes.due is None:
            dues += self._due.values()
        return max(0.0, min(dues) - self._now()) if dues else None

    def _look_at_the_clock(self) -> None:
        now = self._now()
        if self._stop_due is not None and now >= self._stop_due:
            self._kill(now)
        if self._changes.due is not None and now >= self._changes.due:
            self._changes.give_up()
        if self._changes.due is None:  # else a new worker would miss a half of it
            for place in [place for place, due in self._due.items() if now >= due]:
                del self._due[place]
                self._start(place)

    def _obey(self, signals: bytes, listening: socket.socket) -> None:
        for number in signals:
            if number == signal.SIGHUP:
                for worker in self._workers.values():
                    send(worker.line, "reload")
            elif self._stop_due is None:
                self._stop(listening)

    def _stop(self, listening: socket.socket) -> None:
        listening.close()
        self._due.clear()
        self._stop_due = self._now() + self._grace_s + KILL_S
        for worker in self._workers.values():
            worker.process.terminate()

    def _kill(self, now: float) -> None:
        self._stop_due = now + KILL_S
        for worker in self._workers.values():
            log.error("worker %d has not ended in time and is killed", worker.place)
            worker.process.kill()

    def _start(self, place: int) -> None:
        ours, theirs = _fork.Pipe()
        process = _fork.Process(target=self._be_worker, args=(ours, theirs, place), name=f"worker-{place}")
        with _deaf():
            process.start()
        theirs.close()
        self._workers[place] = Child(place, process, ours, self._now())

    def _be_worker(self, ours: Line, theirs: Line, place: int) -> None:
        """What the forked process does."""
        signal.set_wakeup_fd(-1)
        # A terminal sends SIGINT and SIGHUP to all processes: a worker heeds them once it serves
        for number, action in zip(SIGNALS, (signal.SIG_DFL, signal.SIG_IGN, signal.SIG_IGN), strict=True):
            signal.signal(number, action)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for line in (ours, *(worker.line for worker in self._workers.values())):
            line.close()  # else no worker would see that the supervisor is gone
        self._work(theirs, place, self._changes.versions)

    def _hear(self, worker: Child) -> None:
        try:
            message = receive(worker.line)
        except Garbled as error:
            log.error("worker %d is not understood and is killed: %s", worker.place, error)
            worker.process.kill()
            worker.listening = False
            return
        except EOFError:
            worker.listening = False
            return
        match message["kind"]:
            case "started":
                self._welcome()
            case "failed":
                self._mourn(restored(message["error"]))
            case "activate":
                self._changes.ask(worker, message)
            case "done":
                self._changes.note(worker, message)

    def _welcome(self) -> None:
        """A worker serves; if it is the first, others may."""
        if self._proved or self._stop_due is not None:
            return
        self._proved = True
        for place in range(1, self._count):
            self._start(place)

    def _mourn(self, error: SeqserveError) -> None:
        """A worker says that it can't start."""
        if not self._proved:
            raise error
        log.error("a worker can't start: %s", error)

    def _bury(self, worker: Child) -> None:
        """A worker has ended: hear its last words, and see to its place."""
        while worker.listening and worker.line.poll():
            self._hear(worker)
        worker.process.join()
        worker.line.close()
        del self._workers[worker.place]
        self._buried(worker.place, worker.process.name)
        self._changes.lose(worker)
        if self._stop_due is None:
            self._replace(worker)
        else:
            self._peace &= worker.process.exitcode in (0, -signal.SIGTERM)

    def _replace(self, worker: Child) -> None:
        told = f"worker {worker.place} ended with status {worker.process.exitcode}"
        if not self._proved:
            raise SeqserveError(f"{told} before it served")
        now = self._now()
        last = self._pauses.get(worker.place, 0.0)
        stable = now - worker.started >= STABLE_S
        pause = FIRST_PAUSE_S if stable or not last else min(2 * last, LONGEST_PAUSE_S)
        self._pauses[worker.place] = pause
        self._due[worker.place] = now + pause
        log.error("%s; another one starts in %.2g s", told, pause)


@contextmanager
def _bell() -> Iterator[socket.socket]:
    """Can be read from once a signal has come: its number, a byte each."""
    heard, rung = socket.socketpair()
    rung.setblocking(False)
    former = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    signal.set_wakeup_fd(rung.fileno())
    try:
        yield heard
    finally:
        signal.set_wakeup_fd(-1)
        for number, action in former.items():
            signal.signal(number, action)
        heard.close()
        rung.close()


@contextmanager
def _deaf() -> Iterator[None]:
    """Signals wait meanwhile: a process that was forked just now would answer to them as its parent does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
