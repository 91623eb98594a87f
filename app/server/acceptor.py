"""How workers that share a listening socket share the connections to it.

Whoever is awake first would take all that come at once, and a connection stays where it is for as long as its caller
keeps it. So a worker leaves a connection to those who have fewer, unless none of them takes it for a moment.
Who has let one wait so long is passed over for a while: it may be stopped, and each connection would wait for it.
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

from app.server.protocol import Bounded
from app.server.shutdown import PatientServer

COURTESY_S: Final = 0.02  # that a connection waits for another worker: longer than one that is well ever takes
PASSED_OVER_S: Final = 1.0  # for a worker that did not take what was left to it
EXHAUSTED_S: Final = 1.0  # until it is tried again where no more files may be open
ABSENT: Final = -1  # of a worker that accepts nothing

Counts: TypeAlias = "Array[c_int]"  # in memory that processes share

log = logging.getLogger(__name__)


class Counted(set[Any]):
    """The connections of a worker, as uvicorn's protocol notes them, their number told to all."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self._tell = tell

    def add(self, connection: Any) -> None:
        """One more."""
        super().add(connection)
        self._tell(len(self))

    def discard(self, connection: Any) -> None:
        """One less."""
        super().discard(connection)
        self._tell(len(self))


class Acceptor:
    """Accepts in turn with other workers; stands where uvicorn has an asyncio.Server."""

    def __init__(self, listening: socket.socket, place: int, counts: Counts, protocol: Callable[[], Bounded]) -> None:
        """Accept, in the running event loop, until `close`.

        `counts` are the connections of all workers by their places, this one's included, or ABSENT.
        """
        self._listening = listening
        self._place = place
        self._counts = counts
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._making: set[asyncio.Task[None]] = set()
        self._closed = False
        self._later: asyncio.TimerHandle | None = None
        self._passed_over: dict[int, float] = {}  # until when, by place
        self._counts[place] = 0
        listening.setblocking(False)
        self._watch()

    def close(self) -> None:
        """Accept nothing more."""
        self._closed = True
        self._counts[self._place] = ABSENT
        self._loop.remove_reader(self._listening)
        if self._later:
            self._later.cancel()

    async def wait_closed(self) -> None:
        """Wait for what was accepted last to be a connection."""
        await asyncio.gather(*self._making)

    def _watch(self) -> None:
        self._loop.add_reader(self._listening, self._look)

    def _look(self) -> None:
        """A connection has come, to whoever takes it."""
        if preferred := self._preferred():
            self._pause(COURTESY_S, preferred)
        else:
            self._accept()

    def _preferred(self) -> dict[int, int]:
        """The connections of those who have fewer and are well, by their places."""
        now, mine = self._loop.time(), self._counts[self._place]
        return {
            place: count
            for place, count in enumerate(self._counts)
            if ABSENT < count < mine and self._passed_over.get(place, now) <= now
        }

    def _pause(self, seconds: float, preferred: Mapping[int, int]) -> None:
        self._loop.remove_reader(self._listening)
        self._later = self._loop.call_later(seconds, self._resume, preferred)

    def _resume(self, preferred: Mapping[int, int]) -> None:
        self._watch()
        if self._accept():
            until = self._loop.time() + PASSED_OVER_S
            idle = (place for place, count in preferred.items() if self._counts[place] == count)
            self._passed_over.update(dict.fromkeys(idle, until))

    def _accept(self) -> bool:
        """Take a connection, if one is still there."""
        try:
            connection, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another worker was faster; the caller has left
            return False
        except OSError as error:
            log.error("no connection can be accepted: %s", error.strerror)
            self._pause(EXHAUSTED_S, {})
            return False
        connection.setblocking(False)
        self._counts[self._place] += 1  # from now on; the protocol will tell the same number
        making = self._loop.create_task(self._make(connection))
        self._making.add(making)
        making.add_done_callback(self._making.discard)
        return True

    async def _make(self, connection: socket.socket) -> None:
        _, protocol = await self._loop.connect_accepted_socket(self._protocol, connection)
        if self._closed:
            protocol.shutdown()


class FairServer(PatientServer):
    """The server as one of several workers."""

    def __init__(self, config: uvicorn.Config, place: int, counts: Counts) -> None:
        """`place` and `counts` as an Acceptor has them."""
        super().__init__(config)
        self._place = place
        self._counts = counts
        self.server_state.connections = Counted(self._tell)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept."""
        assert sockets
        await super().startup(sockets=[])
        acceptor = Acceptor(sockets[0], self._place, self._counts, self._protocol)
        self.servers = [acceptor]  # type: ignore[list-item]  # it has what uvicorn asks of one

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End when the supervisor says so: a terminal sends SIGINT to all, and a second signal would cut it short."""
        if sig == signal.SIGTERM:
            super().handle_exit(sig, frame)

    def _protocol(self) -> Bounded:
        protocol: Bounded = self.config.http_protocol_class(  # type: ignore[assignment, call-arg]  # as uvicorn does
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    def _tell(self, count: int) -> None:
        if self._counts[self._place] != ABSENT:
            self._counts[self._place] = count
