"""A server and all its processes: what they cost, and their end."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

PROC: Final = Path("/proc")
TICKS: Final = os.sysconf("SC_CLK_TCK")
PEACE_S: Final = 15  # that a server has to end in by itself


class _Process(NamedTuple):
    """A line of /proc/PID/stat."""

    pid: int
    parent: int
    session: int
    started: int  # ticks since boot: with the pid, a name that is never used again
    ticks: int  # of processor time


class Server:
    """A server that runs in a session of its own; its processes are that session's and all descendants of the first."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        """Start it; what it writes goes to `log`."""
        self.log = log
        with log.open("wb") as stream:
            self._first = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )

    def status(self) -> int | None:
        """That of its end; None while it runs."""
        return self._first.poll()

    def cpu_seconds(self) -> float:
        """Processor time of all its processes that run."""
        return sum(process.ticks for process in self._processes()) / TICKS

    def pss_mib(self) -> float:
        """Memory: shared pages are divided among those that share them."""
        return sum(_pss_kib(process.pid) for process in self._processes()) / 1024

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Halt it: even an idle server may take processor time from another."""
        self._tell(signal.SIGSTOP)
        try:
            yield
        finally:
            self._tell(signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to end, then end what is left of it."""
        mine = self._processes()
        self._first.send_signal(signal.SIGTERM)
        try:
            self._first.wait(PEACE_S)
        except subprocess.TimeoutExpired:
            mine += self._processes()
            self._first.kill()
            self._first.wait()
        mine += self._processes()
        for process in _running(mine):
            os.kill(process.pid, signal.SIGKILL)
        until = time.monotonic() + PEACE_S
        while left := _running(mine):
            if time.monotonic() > until:
                raise RuntimeError(f"{self.log.stem}: processes {[each.pid for each in left]} do not end")
            time.sleep(0.05)

    def told(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _tell(self, number: signal.Signals) -> None:
        for process in self._processes():
            os.kill(process.pid, number)

    def _processes(self) -> list[_Process]:
        everyone = _everyone()
        mine = {self._first.pid}
        while further := {each.pid for each in everyone if each.parent in mine and each.pid not in mine}:
            mine |= further
        return [each for each in everyone if each.pid in mine or each.session == self._first.pid]


def _everyone() -> list[_Process]:
    return [found for entry in PROC.iterdir() if entry.name.isdigit() and (found := _process(entry))]


def _process(folder: Path) -> _Process | None:
    """None if it has just ended, or is a zombie."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()  # a name may hold anything
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent, _, session = fields[:4]
    if state == "Z":
        return None
    return _Process(int(folder.name), int(parent), int(session), int(fields[19]), int(fields[11]) + int(fields[12]))


def _running(processes: Sequence[_Process]) -> list[_Process]:
    """Those that still run."""
    known = {(each.pid, each.started) for each in processes}
    return [each for each in _everyone() if (each.pid, each.started) in known]


def _pss_kib(pid: int) -> int:
    """0 for one that has just ended."""
    try:
        told = (PROC / str(pid) / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in told.splitlines() if line.startswith("Pss:"))
