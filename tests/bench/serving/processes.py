"""A server and all its processes: CPU time, memory, pause and stop."""

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
STOP_S: Final = 15  # until the processes are killed


class _Process(NamedTuple):
    """A line of /proc/PID/stat."""

    pid: int
    parent: int
    session: int
    started: int  # ticks since boot: unique together with the pid
    ticks: int  # CPU time


class Server:
    """A server in its own session; its processes are those of the session and all descendants."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        """Start the server with its output in the file `log`."""
        self.log = log
        with log.open("wb") as stream:
            self._first = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )

    def status(self) -> int | None:
        """Return the exit status, None while the server runs."""
        return self._first.poll()

    def cpu_seconds(self) -> float:
        """Return the CPU time of all running processes."""
        return sum(process.ticks for process in self._processes()) / TICKS

    def pss_mib(self) -> float:
        """Return the memory in MiB (PSS: shared pages are divided among their processes)."""
        return sum(_pss_kib(process.pid) for process in self._processes()) / 1024

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Pause all processes: even an idle server may use CPU time."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Send SIGTERM, then kill the remaining processes."""
        mine = self._processes()
        self._first.send_signal(signal.SIGTERM)
        try:
            self._first.wait(STOP_S)
        except subprocess.TimeoutExpired:
            mine += self._processes()
            self._first.kill()
            self._first.wait()
        mine += self._processes()
        for process in _running(mine):
            os.kill(process.pid, signal.SIGKILL)
        until = time.monotonic() + STOP_S
        while left := _running(mine):
            if time.monotonic() > until:
                raise RuntimeError(f"{self.log.stem}: processes {[each.pid for each in left]} did not exit")
            time.sleep(0.05)

    def log_tail(self, lines: int = 15) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
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
    """Return None for a process that has exited or is a zombie."""
    try:
        fields = (folder / "stat").read_text().rpartition(")")[2].split()  # the process name may contain anything
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent, _, session = fields[:4]
    if state == "Z":
        return None
    return _Process(int(folder.name), int(parent), int(session), int(fields[19]), int(fields[11]) + int(fields[12]))


def _running(processes: Sequence[_Process]) -> list[_Process]:
    """Return the processes that still run."""
    known = {(each.pid, each.started) for each in processes}
    return [each for each in _everyone() if (each.pid, each.started) in known]


def _pss_kib(pid: int) -> int:
    """Return the PSS in KiB, 0 for a process that has exited."""
    try:
        rollup = (PROC / str(pid) / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
