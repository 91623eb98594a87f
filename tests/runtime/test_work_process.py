"""WorkProcess for work whose size a client chooses."""

import asyncio
import os
import select
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pebble import ProcessPool

from app.errors import Malformed, NotReady, Overloaded, TooLarge
from app.runtime import work_process as module
from app.runtime.work_process import WorkProcess

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def pool(**limits: float) -> AsyncIterator[WorkProcess]:
    process = WorkProcess(**limits)  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        try:
            yield process
        finally:
            await process.close()


def refuse(message: str) -> None:
    raise Malformed(message)


def hang(pipe: str = os.devnull) -> None:
    Path(pipe).write_text(str(os.getpid()))
    while True:
        pass


def stop_once(flag: Path, number: int) -> int:
    if not flag.exists():
        flag.touch()
        os.kill(os.getpid(), number)
    return number


def hang_once(flag: Path, pipe: str) -> None:
    if not flag.exists():
        flag.touch()
        hang(pipe)


def die() -> None:
    os.kill(os.getpid(), 9)


async def test_a_function_runs_in_another_process_and_returns_its_result_or_error() -> None:
    async with pool() as process:
        assert await process.run("body", os.getpid) != os.getpid()
        with pytest.raises(Malformed, match="no text"):
            await process.run("body", refuse, "no text")


async def test_limits_of_time_and_memory_are_errors_of_the_input() -> None:
    async with pool(time_s=0.5, memory_bytes=2**28) as process:
        with pytest.raises(TooLarge, match="body: expected at most 256 MiB of work"):
            await process.run("body", bytes, 2**29)
        with pytest.raises(TooLarge, match=r"body: expected at most 0\.5 s of work"):
            await process.run("body", hang)
        with pytest.raises(TooLarge):
            await process.run("body", die)
        assert await process.run("body", len, "abc") == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_to_all_processes_of_the_server_loses_no_call(tmp_path: Path, number: int) -> None:
    async with pool() as process:
        assert await process.run("body", stop_once, tmp_path / "flag", number) == number


async def test_a_broken_pool_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[ProcessPool]()

    class Watched(ProcessPool):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(module, "ProcessPool", Watched)
    async with pool() as process:
        assert await process.run("body", len, "abc") == 3
        pipe = tmp_path / "pid"
        os.mkfifo(pipe)
        waiting = asyncio.create_task(process.run("body", hang_once, tmp_path / "flag", str(pipe)))
        await asyncio.to_thread(pipe.read_text)
        started[0].stop()  # type: ignore[no-untyped-call]
        await waiting
    assert len(started) == 2


async def test_cancelling_ends_the_process(tmp_path: Path) -> None:
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    async with pool() as process:
        call = asyncio.create_task(process.run("body", hang, str(pipe)))
        handle = os.pidfd_open(int(await asyncio.to_thread(pipe.read_text)))
        call.cancel()
        ended, _, _ = await asyncio.to_thread(select.select, [handle], [], [], 30)
        os.close(handle)
        assert ended
        assert await process.run("body", len, "abc") == 3


async def test_too_many_calls_are_rejected_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 1)
    async with pool() as process:
        first = asyncio.create_task(process.run("body", len, "abc"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="body: 1 large inputs wait already"):
            await process.run("body", len, "abc")
        assert await first == 3


async def test_a_closed_pool_accepts_nothing_more() -> None:
    async with pool() as process:
        assert await process.run("body", len, "abc") == 3
    with pytest.raises(NotReady):
        await process.run("body", len, "abc")
