"""A supervisor of real processes."""

import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from ctypes import c_uint
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray

import pytest

from app.errors import BundleError, SeqserveError, SettingsError
from app.server import supervisor as supervising
from app.server.supervisor import FAILED, USAGE, Heartbeat, Supervisor, Work


def supervisor(work: Work, on_reaped: Callable[[int, str], None] = lambda *_: None, workers: int = 1) -> Supervisor:
    """Return a supervisor of workers that ignore SIGTERM."""

    def ignore_and_work(index: int, heartbeat: Heartbeat) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        work(index, heartbeat)

    return Supervisor(ignore_and_work, workers=workers, on_reaped=on_reaped, grace_s=0)


def beat(heartbeat: Heartbeat, times: int | None = None) -> None:
    """Beat once, not at all or for ever; then hang."""
    with suppress(TimeoutError):
        if times != 0:
            asyncio.run(asyncio.wait_for(heartbeat.run(), None if times is None else 0.001))
    while True:
        signal.pause()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short intervals."""
    for name, value in {"BEAT_S": 0.02, "KILL_S": 0.05, "MAX_MISSED_AT_START": 100}.items():
        monkeypatch.setattr(supervising, name, value)


@pytest.mark.parametrize(("error", "status"), [(BundleError("a byte"), FAILED), (SettingsError("a name"), USAGE)])
def test_an_error_that_keeps_the_first_worker_from_starting_is_its_status_and_one_line(
    error: SeqserveError, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise error

    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert supervisor(fail, workers=3).run(listening) == status
    assert capfd.readouterr().err == f"seqserve: {error}\n"


def test_a_first_worker_that_crashes_is_an_error(quick: None) -> None:
    def crash(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        pytest.raises(SeqserveError, match="worker 0 exited with status -9 before it was ready"),
    ):
        supervisor(crash).run(listening)


def is_worker(process: BaseProcess) -> bool:
    """Return whether a child is one of a supervisor's, and not one of a pool that an application of a test has left."""
    return not process.name.startswith("pebble_pool_worker")


@pytest.mark.parametrize("times", [0, 1])
def test_a_worker_that_hangs_before_or_after_its_first_heartbeat_is_killed_and_replaced(
    times: int, quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    starts = RawArray(c_uint, 2)
    reaped: list[int] = []

    def work(index: int, heartbeat: Heartbeat) -> None:
        starts[index] += 1
        if starts[1] == 2:
            os.kill(os.getppid(), signal.SIGTERM)
        beat(heartbeat, times if index else None)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        supervisor(work, lambda index, _: reaped.append(index), workers=2).run(listening)
    assert "worker 1 hangs: no heartbeat for" in caplog.text
    assert reaped[0] == 1
    assert starts[1] == 2
    assert [*filter(is_worker, multiprocessing.active_children())] == []


def test_a_worker_that_hangs_is_replaced_within_ten_seconds() -> None:
    assert (supervising.MAX_MISSED + 1) * supervising.BEAT_S + supervising.FIRST_BACKOFF_S < 10


def test_a_worker_that_does_not_exit_in_time_is_killed(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    def work(index: int, heartbeat: Heartbeat) -> None:
        os.kill(os.getppid(), signal.SIGTERM)
        beat(heartbeat)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert supervisor(work).run(listening) == FAILED
    assert "worker 0 did not exit in time and is killed" in caplog.text
    assert [*filter(is_worker, multiprocessing.active_children())] == []


def test_workers_that_ignore_sigterm_are_killed_after_an_error_of_the_supervisor(
    quick: None, caplog: pytest.LogCaptureFixture
) -> None:
    def work(index: int, heartbeat: Heartbeat) -> None:
        if index:
            return  # exits at once
        beat(heartbeat)

    def fail(*_: object) -> None:
        raise BundleError("a byte is wrong")

    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(BundleError, match="a byte is wrong"):
        supervisor(work, fail, workers=2).run(listening)
    assert "worker 0 did not exit in time and is killed" in caplog.text
    assert [*filter(is_worker, multiprocessing.active_children())] == []
