"""A supervisor of forked workers at one port: starts, restarts and stops them, and relays version rollouts.

The supervisor runs no threads, so no lock is held at a fork. All workers accept from one listening socket, which stays
open when a worker exits.
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

Work: TypeAlias = Callable[
    [Line, int, Mapping[str, str]], None
]  # its end of the line, its index, the versions to serve

STABLE_S: Final = 10.0  # a worker that ran this long resets the restart backoff
FIRST_BACKOFF_S: Final = 0.25  # before the restart of a worker that exited sooner; doubled each time
MAX_BACKOFF_S: Final = 15.0
KILL_S: Final = 10.0  # after the grace period, for running batches
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_fork = multiprocessing.get_context("fork")
log = logging.getLogger(__name__)


class Supervisor:
    """Keep a number of workers running until SIGTERM or SIGINT."""

    def __init__(
        self,
        work: Work,
        *,
        workers: int,
        versions: Mapping[str, str],
        save: Save,
        on_reaped: Callable[[int, str], None],
        grace_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Run `work` in every worker; call `on_reaped` with the index and name of each worker that exited."""
        self._work = work
        self._count = workers
        self._on_reaped = on_reaped
        self._grace_s = grace_s
        self._now = now
        self._workers: dict[int, Child] = {}  # by index
        self._changes = Changes(self._workers.values, versions, save, now)
        self._due: dict[int, float] = {}  # time of the next start, by index
        self._backoffs: dict[int, float] = {}  # the last one, by index
        self._proved = False  # one worker became ready, so the settings are valid
        self._stop_due: float | None = None  # set by SIGTERM: workers left at this time are killed
        self._clean_exit = True

    def run(self, listening: socket.socket) -> bool:
        """Run until SIGTERM or SIGINT; return True if all workers then exited cleanly.

        `listening` is closed on the signal. Raise the error that kept the first worker from starting.
        """
        with _signal_pipe() as signals:
            try:
                self._start(0)
                while self._workers or self._stop_due is None:
                    self._step(signals, listening)
            finally:
                self._abandon()
        return self._clean_exit

    def _abandon(self) -> None:
        """Terminate the remaining workers: there are some only after an error in this process."""
        for worker in self._workers.values():
            worker.line.close()  # a worker that waits for a reply would not exit
            worker.process.terminate()
        due = self._now() + self._grace_s + KILL_S
        for worker in self._workers.values():
            worker.process.join(max(0.0, due - self._now()))
            if worker.process.exitcode is None:
                log.error("worker %d did not exit in time and is killed", worker.place)
                worker.process.kill()
                worker.process.join()

    def _step(self, signals: socket.socket, listening: socket.socket) -> None:
        """Wait for one event (signal, message, exit or timer) and handle it."""
        lines = {worker.line: worker for worker in self._workers.values() if worker.listening}
        ends = {worker.process.sentinel: worker for worker in self._workers.values()}
        ready = connection.wait([signals, *lines, *ends], self._timeout())
        if signals in ready:
            self._on_signals(signals.recv(64), listening)
        for line, worker in lines.items():
            if line in ready:
                self._on_message(worker)
        for end, worker in ends.items():
            if end in ready:
                self._reap(worker)
        self._run_timers()

    def _timeout(self) -> float | None:
        """Return the seconds until the next timer, None if there is none."""
        dues = [due for due in (self._changes.due, self._stop_due) if due is not None]
        if self._changes.due is None:
            dues += self._due.values()
        return max(0.0, min(dues) - self._now()) if dues else None

    def _run_timers(self) -> None:
        now = self._now()
        if self._stop_due is not None and now >= self._stop_due:
            self._kill(now)
        if self._changes.due is not None and now >= self._changes.due:
            self._changes.give_up()
        if self._changes.due is None:  # a worker started during a rollout would miss its first phase
            for index in [index for index, due in self._due.items() if now >= due]:
                del self._due[index]
                self._start(index)

    def _on_signals(self, numbers: bytes, listening: socket.socket) -> None:
        for number in numbers:
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
            log.error("worker %d did not exit in time and is killed", worker.place)
            worker.process.kill()

    def _start(self, index: int) -> None:
        ours, theirs = _fork.Pipe()
        process = _fork.Process(target=self._worker_main, args=(ours, theirs, index), name=f"worker-{index}")
        with _signals_blocked():
            process.start()
        theirs.close()
        self._workers[index] = Child(index, process, ours, self._now())

    def _worker_main(self, ours: Line, theirs: Line, index: int) -> None:
        """Run the worker in the forked process."""
        signal.set_wakeup_fd(-1)
        # A terminal sends SIGINT and SIGHUP to all processes: a worker handles them once it serves
        for number, action in zip(SIGNALS, (signal.SIG_DFL, signal.SIG_IGN, signal.SIG_IGN), strict=True):
            signal.signal(number, action)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        for line in (ours, *(worker.line for worker in self._workers.values())):
            line.close()  # a copy held open would hide the supervisor's exit from the workers
        self._work(theirs, index, self._changes.versions)

    def _on_message(self, worker: Child) -> None:
        try:
            message = receive(worker.line)
        except Garbled as error:
            log.error("worker %d: invalid message, killed: %s", worker.place, error)
            worker.process.kill()
            worker.listening = False
            return
        except EOFError:
            worker.listening = False
            return
        match message["kind"]:
            case "started":
                self._on_ready()
            case "failed":
                self._on_start_failed(restored(message["error"]))
            case "activate":
                self._changes.ask(worker, message)
            case "done":
                self._changes.note(worker, message)

    def _on_ready(self) -> None:
        """Start the other workers once the first is ready."""
        if self._proved or self._stop_due is not None:
            return
        self._proved = True
        for index in range(1, self._count):
            self._start(index)

    def _on_start_failed(self, error: SeqserveError) -> None:
        """Raise a worker's start-up error if no worker was ever ready, else log it."""
        if not self._proved:
            raise error
        log.error("worker start failed: %s", error)

    def _reap(self, worker: Child) -> None:
        """Read the last messages of a worker that exited, then schedule its replacement."""
        while worker.listening and worker.line.poll():
            self._on_message(worker)
        worker.process.join()
        worker.line.close()
        del self._workers[worker.place]
        self._on_reaped(worker.place, worker.process.name)
        self._changes.lose(worker)
        if self._stop_due is None:
            self._replace(worker)
        else:
            self._clean_exit &= worker.process.exitcode in (0, -signal.SIGTERM)

    def _replace(self, worker: Child) -> None:
        status = f"worker {worker.place} exited with status {worker.process.exitcode}"
        if not self._proved:
            raise SeqserveError(f"{status} before it was ready")
        now = self._now()
        last = self._backoffs.get(worker.place, 0.0)
        stable = now - worker.started >= STABLE_S
        backoff = FIRST_BACKOFF_S if stable or not last else min(2 * last, MAX_BACKOFF_S)
        self._backoffs[worker.place] = backoff
        self._due[worker.place] = now + backoff
        log.error("%s; restarting in %.2g s", status, backoff)


@contextmanager
def _signal_pipe() -> Iterator[socket.socket]:
    """A socket from which the numbers of received signals are read, one byte each."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    former = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    signal.set_wakeup_fd(writer.fileno())
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(-1)
        for number, action in former.items():
            signal.signal(number, action)
        reader.close()
        writer.close()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block signals during a fork: a new process would run its parent's handlers."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
