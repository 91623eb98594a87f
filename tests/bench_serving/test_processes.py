import os
import sys
from pathlib import Path

import pytest

from tests.bench.serving.processes import Server

# A process that has a child in a session of its own, which has a child; the last writes the three pids and works on.
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
    told = tmp_path / "pids"
    server = Server([sys.executable, "-c", FAMILY, str(told)], dict(os.environ), tmp_path / "server.log")
    while not told.exists():
        assert server.status() is None, server.told()
    return server, [int(pid) for pid in told.read_text().split()]


def state(pid: int) -> str:
    """As /proc has it; nothing for a process that is gone, or only waits for somebody to notice its end."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""
    return found.replace("Z", "")


def test_no_process_is_left(family: tuple[Server, list[int]]) -> None:
    server, pids = family
    server.stop()
    assert server.status() is not None
    assert [state(pid) for pid in pids] == ["", "", ""]


def test_the_work_and_the_memory_of_all_processes_count(family: tuple[Server, list[int]]) -> None:
    server, _ = family
    try:
        before = server.cpu_seconds()
        while server.cpu_seconds() < before + 0.1:
            assert server.status() is None
        assert server.pss_mib() > 3
    finally:
        server.stop()


def test_a_paused_server_does_nothing_until_it_goes_on(family: tuple[Server, list[int]]) -> None:
    server, pids = family
    try:
        with server.paused():
            while [state(pid) for pid in pids] != ["T", "T", "T"]:
                assert server.status() is None
        while "T" in [state(pid) for pid in pids]:
            assert server.status() is None
    finally:
        server.stop()


def test_a_server_that_ends_tells_why(tmp_path: Path) -> None:
    server = Server([sys.executable, "-c", "raise SystemExit('no port')"], dict(os.environ), tmp_path / "server.log")
    while server.status() is None:
        pass
    assert server.status() == 1
    assert server.told() == "no port"
    server.stop()
