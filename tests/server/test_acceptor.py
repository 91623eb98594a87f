"""Least-connections balancing between workers of one listening socket."""

import asyncio
import ctypes
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from multiprocessing.sharedctypes import RawArray
from typing import Any, cast

import pytest

from app.server.acceptor import ABSENT, MAX_ACCEPTED, Acceptor, CountedConnections

pytestmark = pytest.mark.anyio


class Protocol(asyncio.Protocol):
    """A protocol that only registers its connection."""

    def __init__(self, connections: set[Any]) -> None:
        self._connections = connections

    def connection_made(self, _: asyncio.BaseTransport) -> None:
        self._connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._connections.discard(self)


class Workers:
    """The shared connection counts of three workers."""

    def __init__(self) -> None:
        self.counts = RawArray(ctypes.c_int, [ABSENT] * 3)
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def accepting(self, listening: socket.socket, index: int) -> AsyncIterator[None]:
        """Accept as the worker at `index`."""
        connections = CountedConnections(partial(self._report, index))
        make = cast(Any, lambda: Protocol(connections))
        with listening.dup() as own:
            acceptor = Acceptor(own, index, self.counts, make)
            yield
            acceptor.close()
            await acceptor.wait_closed()

    def _report(self, index: int, count: int) -> None:
        self.counts[index] = count
        self._changed.set()

    async def until(self, *counts: int) -> None:
        """Wait until the workers have these counts, in any order."""
        async with asyncio.timeout(10):
            while sorted(self.counts) != sorted(counts):
                self._changed.clear()
                await self._changed.wait()


async def test_a_connection_goes_to_the_worker_with_fewest_connections() -> None:
    workers = Workers()
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as clients:
        async with workers.accepting(listening, 0), workers.accepting(listening, 1):
            for number in range(1, 9):
                clients.enter_context(socket.create_connection(listening.getsockname()))
                await workers.until(ABSENT, number // 2, number - number // 2)
            clients.close()
            await workers.until(ABSENT, 0, 0)
        assert list(workers.counts) == [ABSENT] * 3


async def test_a_worker_that_does_not_accept_delays_no_connection_for_ever() -> None:
    workers = Workers()
    workers.counts[1] = 0  # but it does not run
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as clients:
        async with workers.accepting(listening, 0):
            for _ in range(3):
                clients.enter_context(socket.create_connection(listening.getsockname()))
            await workers.until(3, 0, ABSENT)
            clients.close()
            await workers.until(0, 0, ABSENT)


async def test_a_stopped_worker_delays_one_connection_and_not_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.server.acceptor.YIELD_S", 0.5)
    monkeypatch.setattr("app.server.acceptor.SKIP_S", 60)
    workers = Workers()
    workers.counts[1] = 0  # but it is stopped
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as clients:
        async with workers.accepting(listening, 0):
            for _ in range(40):  # 20 s, if each waited
                clients.enter_context(socket.create_connection(listening.getsockname()))
            await workers.until(40, 0, ABSENT)
            clients.close()
            await workers.until(0, 0, ABSENT)


async def test_a_burst_of_connections_is_accepted_at_once() -> None:
    workers = Workers()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening, ExitStack() as clients:
        for _ in range(3 * MAX_ACCEPTED):
            clients.enter_context(socket.create_connection(listening.getsockname()))
        async with workers.accepting(listening, 0):
            iterations = 0
            while workers.counts[0] < 3 * MAX_ACCEPTED:
                await asyncio.sleep(0)  # an iteration of the event loop
                iterations += 1
            assert iterations <= 12  # three to accept, and few until the protocols have registered
            clients.close()
            await workers.until(ABSENT, ABSENT, 0)


async def test_the_last_worker_to_finish_accepts_all_open_connections() -> None:
    workers = Workers()
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as clients:
        acceptors, accepted = [], [set[Any](), set[Any]()]
        for index in range(2):
            make = cast(Any, partial(Protocol, accepted[index]))
            acceptors.append(Acceptor(clients.enter_context(listening.dup()), index, workers.counts, make))
        await acceptors[0].finish()
        for _ in range(20):
            clients.enter_context(socket.create_connection(listening.getsockname()))
        await acceptors[1].finish()
        for acceptor in acceptors:
            await acceptor.wait_closed()
        assert [len(each) for each in accepted] == [0, 20]
        assert list(workers.counts) == [ABSENT] * 3
