"""Least-connections balancing between workers that accept from one shared listening socket.

The first worker to wake up would otherwise accept a whole burst, and keep-alive connections stay where they were
accepted. So a worker yields to workers that have fewer connections, for at most YIELD_S per burst. A worker that does
not accept within that time may be stopped or busy: it is skipped for SKIP_S.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from ctypes import Array, c_int
from typing import Any, Final, TypeAlias

from app.server import sockets

MAX_ACCEPTED: Final = 16  # connections accepted at once
YIELD_S: Final = 0.02  # longest wait for a worker with fewer connections; a healthy worker accepts sooner
SKIP_S: Final = 1.0  # no yielding to a worker that did not accept in time
RETRY_S: Final = 1.0  # pause after accept() failed, as with too many open files
HANDSHAKE_S: Final = 0.2  # in which the last connections become ready to be accepted: a round trip
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
        self, listening: socket.socket, index: int, counts: Counts, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        """Start to accept in the running event loop, until `close`.

        `counts` holds the connections of each worker by index, or ABSENT; `index` is this worker's.
        """
        self._listening = listening
        self._index = index
        self._counts = counts
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._pending: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._skipped_until: dict[int, float] = {}  # loop time by worker index
        self._counts[index] = 0
        listening.setblocking(False)
        self._watch()

    async def finish(self) -> None:
        """Stop accepting, the last worker once it has accepted every connection that a client has opened."""
        self._counts[self._index] = ABSENT
        if all(count == ABSENT for count in self._counts):
            stopped = sockets.stop_handshakes(self._listening)
            await asyncio.sleep(HANDSHAKE_S)
            own = None
            while self._accept() or not (stopped or (own := sockets.fill_backlog(self._listening))):
                pass
            self.close()
            self._listening.close()
            if own:
                own.close()
        self.close()

    def close(self) -> None:
        """Stop accepting."""
        self._counts[self._index] = ABSENT
        if self._listening.fileno() >= 0:
            self._loop.remove_reader(self._listening)
        if self._timer:
            self._timer.cancel()

    async def wait_closed(self) -> None:
        """Wait until every accepted socket has its protocol."""
        await asyncio.gather(*self._pending)

    def _watch(self) -> None:
        self._loop.add_reader(self._listening, self._on_readable)

    def _on_readable(self) -> None:
        """Accept the connections that wait, but yield to workers with fewer."""
        for _ in range(MAX_ACCEPTED):
            if preferred := self._less_loaded():
                self._pause(YIELD_S, preferred)
                return
            if not self._accept():
                return

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
            for _ in range(MAX_ACCEPTED - 1):  # the others may all wait as well
                if not self._accept():
                    break
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
        if self._counts[self._index] != ABSENT:
            self._counts[self._index] += 1  # before the protocol registers it, so that others see it at once
        task = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, connection))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return True
