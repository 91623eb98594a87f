import os
import sys
from pathlib import Path

import pytest

from tests.bench.serving.processes import Server

# A process, its child in another session, and a grandchild that writes the three pids and keeps a core busy.
FAMILY = """
import os, subprocess, sys, time
path = sys.argv[1]
last = f"import os, pathlib; p = pathlib.Path({path!r}); (q := p.with_suffix('.new')).write_text('{os.getpid()} ' + "
last += "f'{os.getppid()} {os.getpid()}'); q.rename(p)\\nwhile True: pass"
middle = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {last!r}])"
subprocess.run([sys.executable, "-c", middle], start_new_session=True)
"""


@pytest.fixture
def family(tmp_path: Path) -> tuple[Server, list[int]]:
    """A server of three processes, and their pids."""
    pids = tmp_path / "pids"
    server = Server([sys.executable, "-c", FAMILY, str(pids)], dict(os.environ), tmp_path / "server.log")
    while not pids.exists():
        assert server.status() is None, server.log_tail()
    return server, [int(pid) for pid in pids.read_text().split()]


def state(pid: int) -> str:
    """Return the process state of /proc, empty for a process that has exited or is a zombie."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""
    return found.replace("Z", "")


def test_stop_leaves_no_process(family: tuple[Server, list[int]]) -> None:
    server, pids = family
    server.stop()
    assert server.status() is not None
    assert [state(pid) for pid in pids] == ["", "", ""]


def test_cpu_time_and_memory_cover_all_processes(family: tuple[Server, list[int]]) -> None:
    server, _ = family
    try:
        before = server.cpu_seconds()
        while server.cpu_seconds() < before + 0.1:
            assert server.status() is None
        assert server.pss_mib() > 3
    finally:
        server.stop()


def test_pause_stops_all_processes_until_resumed(family: tuple[Server, list[int]]) -> None:
    server, pids = family
    try:
        with server.paused():
            while [state(pid) for pid in pids] != ["T", "T", "T"]:
                assert server.status() is None
        while "T" in [state(pid) for pid in pids]:
            assert server.status() is None
    finally:
        server.stop()


def test_the_log_of_an_exited_server_is_available(tmp_path: Path) -> None:
    server = Server([sys.executable, "-c", "raise SystemExit('no port')"], dict(os.environ), tmp_path / "server.log")
    while server.status() is None:
        pass
    assert server.status() == 1
    assert server.log_tail() == "no port"
    server.stop()
