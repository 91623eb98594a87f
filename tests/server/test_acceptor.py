"""How workers share the connections to one socket."""

import asyncio
import ctypes
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from multiprocessing.sharedctypes import RawArray
from typing import Any, cast

import pytest

from app.server.acceptor import ABSENT, Acceptor, Counted

pytestmark = pytest.mark.anyio


class Protocol(asyncio.Protocol):
    """What a worker does with a connection: it notes it."""

    def __init__(self, connections: set[Any]) -> None:
        self._connections = connections

    def connection_made(self, _: asyncio.BaseTransport) -> None:
        self._connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.discard(self)


class Workers:
    """Three workers, as far as others see them."""

    def __init__(self) -> None:
        self.counts = RawArray(ctypes.c_int, [ABSENT] * 3)
        self._told = asyncio.Event()

    @asynccontextmanager
    async def accepting(self, listening: socket.socket, place: int) -> AsyncIterator[None]:
        """One of them accepts meanwhile."""
        connections = Counted(partial(self._tell, place))
        make = cast(Any, lambda: Protocol(connections))
        with listening.dup() as own:
            acceptor = Acceptor(own, place, self.counts, make)
            yield
            acceptor.close()
            await acceptor.wait_closed()

    def _tell(self, place: int, count: int) -> None:
        self.counts[place] = count
        self._told.set()

    async def until(self, *counts: int) -> None:
        """Wait for them to have so many connections, in any order."""
        async with asyncio.timeout(10):
            while sorted(self.counts) != sorted(counts):
                self._told.clear()
                await self._told.wait()


async def test_a_connection_is_left_to_who_has_fewer() -> None:
    workers = Workers()
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as callers:
        async with workers.accepting(listening, 0), workers.accepting(listening, 1):
            for number in range(1, 9):
                callers.enter_context(socket.create_connection(listening.getsockname()))
                await workers.until(ABSENT, number // 2, number - number // 2)
            callers.close()
            await workers.until(ABSENT, 0, 0)
        assert list(workers.counts) == [ABSENT] * 3


async def test_it_is_not_left_to_who_does_not_take_it() -> None:
    workers = Workers()
    workers.counts[1] = 0  # but nobody is there
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as callers:
        async with workers.accepting(listening, 0):
            for _ in range(3):
                callers.enter_context(socket.create_connection(listening.getsockname()))
            await workers.until(3, 0, ABSENT)
            callers.close()
            await workers.until(0, 0, ABSENT)


async def test_who_does_not_take_it_costs_the_others_one_wait_and_not_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.acceptor.COURTESY_S", 0.5)
    monkeypatch.setattr("app.server.acceptor.PASSED_OVER_S", 60)
    workers = Workers()
    workers.counts[1] = 0  # but it is stopped
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as callers:
        async with workers.accepting(listening, 0):
            for _ in range(40):  # 20 s, if each waited
                callers.enter_context(socket.create_connection(listening.getsockname()))
            await workers.until(40, 0, ABSENT)
            callers.close()
            await workers.until(0, 0, ABSENT)
