"""Graceful shutdown: readiness falls first, accepted requests finish, every opened connection gets its answer."""

import asyncio
import contextlib
import signal
import socket
import time
from functools import partial
from types import FrameType
from typing import Any, Final

import uvicorn

from app.server.acceptor import ABSENT, Acceptor, CountedConnections, Counts
from app.server.connections import LINGER_S
from app.server.protocol import LimitedProtocol
from app.server.supervisor import Heartbeat

POLL_S: Final = 0.1  # how often a forced exit is checked for
DRAIN_S: Final = 1.0  # in which the last connections may send a request, and get 503


class GracefulServer(uvicorn.Server):
    """A uvicorn server that keeps accepting after SIGTERM until the requests in flight are answered.

    New requests meanwhile get 503 "shutting down" instead of a refused connection, and every response closes its
    connection. This phase and uvicorn's own shutdown share one grace period. Several servers, the workers, share a
    listening socket.
    """

    def __init__(self, config: uvicorn.Config, index: int, counts: Counts, heartbeat: Heartbeat | None = None) -> None:
        """Take `index` and `counts` as Acceptor does, and a worker's heartbeat.

        Only SIGTERM stops a worker: a terminal sends SIGINT to all processes, and a second signal would force the exit.
        """
        super().__init__(config)
        assert isinstance(config.http, type)
        assert issubclass(config.http, LimitedProtocol)
        self._protocol = config.http
        self._index = index
        self._counts = counts
        self._heartbeat = heartbeat
        self._connections = CountedConnections(self._report)
        self._unconnected = asyncio.Event()
        self.server_state.connections = self._connections

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections."""
        assert sockets
        await super().startup(sockets=[])
        if self._heartbeat:
            self._beating = asyncio.ensure_future(self._heartbeat.run())
        make = partial(
            self._protocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        self._acceptor = Acceptor(sockets[0], self._index, self._counts, make)
        self.servers = [self._acceptor]  # type: ignore[list-item]  # it has the methods that uvicorn calls

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Exit on a signal."""
        if sig == signal.SIGTERM or not self._heartbeat:
            super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down within the grace period, and DRAIN_S and LINGER_S for the last connections."""
        self.lifespan.state["registry"].shut()
        grace = self.config.timeout_graceful_shutdown or 0
        deadline = time.monotonic() + grace
        self._protocol.limits.draining = True
        for connection in self._connections:
            if connection.cycle:
                connection.cycle.keep_alive = False
        in_flight: set[asyncio.Task[Any]] = set(self.server_state.tasks)
        while in_flight and time.monotonic() < deadline and not self.force_exit:
            _, in_flight = await asyncio.wait(in_flight, timeout=min(POLL_S, grace))
        await self._acceptor.finish()
        await self._wait_for_clients(DRAIN_S)
        self.config.timeout_graceful_shutdown = max(0, deadline - time.monotonic())  # type: ignore[assignment]  # any number
        await super().shutdown(sockets)
        await self._wait_for_clients(LINGER_S)

    async def _wait_for_clients(self, seconds: float) -> None:
        """Wait until no connection is open."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._connections:
                    self._unconnected.clear()
                    await self._unconnected.wait()

    def _report(self, count: int) -> None:
        self.lifespan.state["metrics"].set_connections(count)
        if not count:
            self._unconnected.set()
        if self._counts[self._index] != ABSENT:
            self._counts[self._index] = count
