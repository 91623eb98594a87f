"""Least-connections balancing between workers that accept from one shared listening socket.

The first worker to wake up would otherwise accept a whole burst, and keep-alive connections stay where they were
accepted. So a worker yields to workers that have fewer connections, for at most YIELD_S per connection. A worker that
does not accept within that time may be stopped: it is skipped for SKIP_S, so that only one connection waits for it.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Mapping
from ctypes import Array, c_int
from types import FrameType
from typing import Any, Final, TypeAlias

import uvicorn

from app.server.protocol import LimitedProtocol
from app.server.shutdown import GracefulServer
from app.server.supervisor import Heartbeat

YIELD_S: Final = 0.02  # longest wait for a worker with fewer connections; a healthy worker accepts sooner
SKIP_S: Final = 1.0  # no yielding to a worker that did not accept in time
RETRY_S: Final = 1.0  # pause after accept() failed, as with too many open files
ABSENT: Final = -1  # count of a worker that is not accepting

Counts: TypeAlias = "Array[c_int]"  # connections by worker index, in shared memory

log = logging.getLogger(__name__)


class CountedConnections(set[Any]):
    """The set of open connections that uvicorn's protocol maintains; reports its size after each change."""

    def __init__(self, report: Callable[[int], None]) -> None:
        super().__init__()
        self._report = report

    def add(self, connection: Any) -> None:
        """Add a connection."""
        super().add(connection)
        self._report(len(self))

    def discard(self, connection: Any) -> None:
        """Remove a connection."""
        super().discard(connection)
        self._report(len(self))


class Acceptor:
    """A least-connections acceptor, with the part of the asyncio.Server interface that uvicorn uses."""

    def __init__(
        self, listening: socket.socket, index: int, counts: Counts, protocol: Callable[[], LimitedProtocol]
    ) -> None:
        """Start to accept in the running event loop, until `close`.

        `counts` holds the connections of each worker by index, or ABSENT; `index` is this worker's.
        """
        self._listening = listening
        self._index = index
        self._counts = counts
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._pending: set[asyncio.Task[None]] = set()
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._skipped_until: dict[int, float] = {}  # loop time by worker index
        self._counts[index] = 0
        listening.setblocking(False)
        self._watch()

    def close(self) -> None:
        """Stop accepting."""
        self._closed = True
        self._counts[self._index] = ABSENT
        self._loop.remove_reader(self._listening)
        if self._timer:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """Wait until every accepted socket has its protocol."""
        await asyncio.gather(*self._pending)

    def _watch(self) -> None:
        self._loop.add_reader(self._listening, self._on_readable)

    def _on_readable(self) -> None:
        """Accept a connection, or yield to workers with fewer."""
        if preferred := self._less_loaded():
            self._pause(YIELD_S, preferred)
        else:
            self._accept()

    def _less_loaded(self) -> dict[int, int]:
        """Return the connection counts, by index, of workers with fewer connections that are not skipped."""
        now, mine = self._loop.time(), self._counts[self._index]
        return {
            index: count
            for index, count in enumerate(self._counts)
            if ABSENT < count < mine and self._skipped_until.get(index, now) <= now
        }

    def _pause(self, seconds: float, preferred: Mapping[int, int]) -> None:
        self._loop.remove_reader(self._listening)
        self._timer = self._loop.call_later(seconds, self._resume, preferred)

    def _resume(self, preferred: Mapping[int, int]) -> None:
        self._watch()
        if self._accept():
            until = self._loop.time() + SKIP_S
            idle = (index for index, count in preferred.items() if self._counts[index] == count)
            self._skipped_until.update(dict.fromkeys(idle, until))

    def _accept(self) -> bool:
        """Accept one connection; return False if there is none left or accept() failed."""
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another worker was faster; the client has disconnected
            return False
        except OSError as error:
            log.error("accept: %s", error.strerror)
            self._pause(RETRY_S, {})
            return False
        connection.setblocking(False)
        self._counts[self._index] += 1  # counted before the protocol registers it, so that others see it at once
        task = self._loop.create_task(self._connect(connection))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return True

    async def _connect(self, connection: socket.socket) -> None:
        _, protocol = await self._loop.connect_accepted_socket(self._protocol, connection)
        if self._closed:
            protocol.shutdown()


class WorkerServer(GracefulServer):
    """A graceful server that is one of several workers and shares their listening socket."""

    def __init__(self, config: uvicorn.Config, index: int, counts: Counts, heartbeat: Heartbeat) -> None:
        """Take `index` and `counts` as Acceptor does."""
        super().__init__(config)
        self._index = index
        self._counts = counts
        self._heartbeat = heartbeat
        self.server_state.connections = CountedConnections(self._report)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept connections."""
        assert sockets
        await super().startup(sockets=[])
        self._beating = asyncio.ensure_future(self._heartbeat.run())
        acceptor = Acceptor(sockets[0], self._index, self._counts, self._protocol)
        self.servers = [acceptor]  # type: ignore[list-item]  # it has the methods that uvicorn calls

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Exit on SIGTERM only: a terminal sends SIGINT to all processes, and a second signal would force the exit."""
        if sig == signal.SIGTERM:
            super().handle_exit(sig, frame)

    def _protocol(self) -> LimitedProtocol:
        protocol: LimitedProtocol = self.config.http_protocol_class(  # type: ignore[assignment, call-arg]  # as uvicorn does
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def _report(self, count: int) -> None:
        if self._counts[self._index] != ABSENT:
            self._counts[self._index] = count
