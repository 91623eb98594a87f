"""How the server stops: readiness falls first, what was accepted is finished, then nothing more is accepted."""

import asyncio
import socket
import time
from typing import Any, Final

import uvicorn

LOOK_S: Final = 0.1  # how often it is seen whether there is no more patience


class PatientServer(uvicorn.Server):
    """uvicorn's server, which on SIGTERM goes on listening until the requests under way are answered.

    Whoever asks in between is told that it shuts down, and not left to guess from a connection that is refused. Both,
    that and what is left of uvicorn's own way to stop, take the grace period together.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, as described."""
        self.lifespan.state["catalogue"].shut()
        grace = self.config.timeout_graceful_shutdown or 0
        ended = time.monotonic() + grace
        for connection in self.server_state.connections:
            _let_close(connection)
        under_way: set[asyncio.Task[Any]] = set(self.server_state.tasks)
        while under_way and time.monotonic() < ended and not self.force_exit:
            _, under_way = await asyncio.wait(under_way, timeout=min(LOOK_S, grace))
        self.config.timeout_graceful_shutdown = max(0, ended - time.monotonic())  # type: ignore[assignment]  # any number
        await super().shutdown(sockets)


def _let_close(connection: Any) -> None:
    """Let the answer under way, if any, be the connection's last and say so."""
    if connection.cycle and not connection.cycle.response_complete:
        connection.shutdown()
