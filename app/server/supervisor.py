"""A supervisor of forked workers at one port: starts them, watches their heartbeats, restarts and stops them.

The supervisor runs no threads, so no lock is held at a fork. All workers accept from one listening socket, which stays
open when a worker exits.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import Array, c_uint
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from typing import Final, TypeAlias

from app.errors import SeqserveError, SettingsError

STABLE_S: Final = 10.0  # a worker that ran this long resets the restart backoff
FIRST_BACKOFF_S: Final = 0.25  # before the restart of a worker that exited sooner; doubled each time
MAX_BACKOFF_S: Final = 15.0
KILL_S: Final = 10.0  # after the grace period, for running batches
BEAT_S: Final = 1.0  # interval of a worker's heartbeats, and of their check
MAX_MISSED: Final = 7  # heartbeats; a worker that misses more is killed
MAX_MISSED_AT_START: Final = 120  # before the first one, while models load
POLL_S: Final = 0.05  # interval at which the first worker's first heartbeat is awaited
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
FAILED, USAGE = 1, 2  # exit statuses

_fork = multiprocessing.get_context("fork")
log = logging.getLogger(__name__)


class Heartbeat:
    """A worker's sign of life: a counter in memory shared with the supervisor, 0 until the worker serves."""

    def __init__(self, counters: "Array[c_uint]", index: int, supervisor: int) -> None:
        """`supervisor` is a process id."""
        self._counters = counters
        self._index = index
        self._supervisor = supervisor

    async def run(self) -> None:
        """Beat while the event loop runs; stop this process if the supervisor has exited: nothing else would."""
        while True:
            self._counters[self._index] += 1
            if os.getppid() != self._supervisor:
                os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(BEAT_S)


Work: TypeAlias = Callable[[int, Heartbeat], None]  # run a worker, by index, until SIGTERM


@dataclass(eq=False)
class _Worker:
    """A worker process."""

    index: int
    process: BaseProcess
    started: float
    beat: int = 0  # last heartbeat seen
    missed: int = 0  # checks since then


class Supervisor:
    """Keep a number of workers running until SIGTERM or SIGINT."""

    def __init__(
        self,
        work: Work,
        *,
        workers: int,
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
        self._beats = RawArray(c_uint, workers)
        self._workers: dict[int, _Worker] = {}  # by index
        self._due: dict[int, float] = {}  # time of the next start, by index
        self._backoffs: dict[int, float] = {}  # the last one, by index
        self._check_due = now() + BEAT_S  # of the heartbeats
        self._proved = False  # one worker serves, so the settings are valid
        self._stop_due: float | None = None  # set by SIGTERM: workers left at this time are killed
        self._status = 0

    def run(self, listening: socket.socket) -> int:
        """Run until SIGTERM or SIGINT and return the exit status: 0 if all workers then exited cleanly.

        `listening` is closed on the signal. If the first worker can't start, return its status once it has reported
        the error, or raise SeqserveError if it crashed.
        """
        with _signal_pipe() as signals:
            try:
                self._start(0)
                while self._workers or self._stop_due is None:
                    self._step(signals, listening)
            finally:
                self._abandon()
        return self._status

    def _abandon(self) -> None:
        """Terminate the remaining workers: there are some only after an error in this process."""
        for worker in self._workers.values():
            worker.process.terminate()
        due = self._now() + self._grace_s + KILL_S
        for worker in self._workers.values():
            worker.process.join(max(0.0, due - self._now()))
            if worker.process.exitcode is None:
                log.error("worker %d did not exit in time and is killed", worker.index)
                worker.process.kill()
                worker.process.join()

    def _step(self, signals: socket.socket, listening: socket.socket) -> None:
        """Wait for one event (signal, exit or timer) and handle it."""
        ends = {worker.process.sentinel: worker for worker in self._workers.values()}
        ready = connection.wait([signals, *ends], self._timeout())
        if signals in ready:
            self._on_signals(signals.recv(64), listening)
        for end, worker in ends.items():
            if end in ready:
                self._reap(worker)
        self._run_timers()

    def _timeout(self) -> float:
        """Return the seconds until the next timer."""
        if not self._proved:
            return POLL_S
        dues = [self._check_due, *self._due.values(), *([self._stop_due] if self._stop_due else [])]
        return max(0.0, min(dues) - self._now())

    def _run_timers(self) -> None:
        now = self._now()
        if not self._proved and any(self._beats):
            self._proved = True
            self._due = dict.fromkeys(range(1, self._count), now)
        if self._stop_due is not None:
            if now >= self._stop_due:
                self._stop_due = now + KILL_S
                for worker in self._workers.values():
                    log.error("worker %d did not exit in time and is killed", worker.index)
                    worker.process.kill()
            return
        if now >= self._check_due:
            self._check_due = now + BEAT_S
            self._check_heartbeats()
        for index in [index for index, due in self._due.items() if now >= due]:
            del self._due[index]
            self._start(index)

    def _check_heartbeats(self) -> None:
        """Kill workers that hang. Checks are counted, not seconds: if all processes were stopped, none hangs."""
        for worker in self._workers.values():
            beat = self._beats[worker.index]
            worker.missed = 0 if beat != worker.beat else worker.missed + 1
            worker.beat = beat
            if worker.missed > (MAX_MISSED if beat else MAX_MISSED_AT_START):
                log.error("worker %d hangs: no heartbeat for %.0f s, killed", worker.index, worker.missed * BEAT_S)
                worker.process.kill()

    def _on_signals(self, numbers: bytes, listening: socket.socket) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                for worker in self._workers.values():
                    os.kill(worker.process.pid or 0, signal.SIGHUP)
            elif self._stop_due is None:
                self._stop(listening)

    def _stop(self, listening: socket.socket) -> None:
        listening.close()
        self._due.clear()
        self._stop_due = self._now() + self._grace_s + KILL_S
        for worker in self._workers.values():
            worker.process.terminate()

    def _start(self, index: int) -> None:
        self._beats[index] = 0
        process = _fork.Process(target=self._worker_main, args=(index, os.getpid()), name=f"worker-{index}")
        with _signals_blocked():
            process.start()
        self._workers[index] = _Worker(index, process, self._now())

    def _worker_main(self, index: int, supervisor: int) -> None:
        """Run the worker in the forked process. An error that keeps it from starting is its exit status."""
        signal.set_wakeup_fd(-1)
        # A terminal sends SIGINT and SIGHUP to all processes: a worker handles them once it serves
        for number, action in zip(SIGNALS, (signal.SIG_DFL, signal.SIG_IGN, signal.SIG_IGN), strict=True):
            signal.signal(number, action)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            self._work(index, Heartbeat(self._beats, index, supervisor))
        except SeqserveError as error:
            if self._proved:
                log.error("worker %d can't start: %s", index, error)
            else:
                print(f"seqserve: {error}", file=sys.stderr)
            sys.exit(USAGE if isinstance(error, SettingsError) else FAILED)

    def _reap(self, worker: _Worker) -> None:
        """Schedule the replacement of a worker that exited."""
        worker.process.join()
        del self._workers[worker.index]
        self._on_reaped(worker.index, worker.process.name)
        status = worker.process.exitcode or 0
        if self._stop_due is not None:
            if status not in (0, -signal.SIGTERM):
                self._status = FAILED
        elif self._proved:
            self._replace(worker, status)
        elif status > 0:
            self._status, self._stop_due = status, self._now()
        else:
            raise SeqserveError(f"worker {worker.index} exited with status {status} before it was ready")

    def _replace(self, worker: _Worker, status: int) -> None:
        now = self._now()
        last = self._backoffs.get(worker.index, 0.0)
        stable = now - worker.started >= STABLE_S
        backoff = FIRST_BACKOFF_S if stable or not last else min(2 * last, MAX_BACKOFF_S)
        self._backoffs[worker.index] = backoff
        self._due[worker.index] = now + backoff
        log.error("worker %d exited with status %d; restarting in %.2g s", worker.index, status, backoff)


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
