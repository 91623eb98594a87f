"""Graceful shutdown: readiness falls first, accepted requests finish, then the listening socket closes."""

import asyncio
import socket
import time
from typing import Any, Final

import uvicorn

POLL_S: Final = 0.1  # how often a forced exit is checked for


class GracefulServer(uvicorn.Server):
    """A uvicorn server that keeps accepting after SIGTERM until the requests in flight are answered.

    New requests meanwhile get 503 "shutting down" instead of a refused connection. This phase and uvicorn's own
    shutdown share one grace period.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down within the grace period."""
        self.lifespan.state["registry"].shut()
        grace = self.config.timeout_graceful_shutdown or 0
        deadline = time.monotonic() + grace
        for connection in self.server_state.connections:
            _close_after_response(connection)
        in_flight: set[asyncio.Task[Any]] = set(self.server_state.tasks)
        while in_flight and time.monotonic() < deadline and not self.force_exit:
            _, in_flight = await asyncio.wait(in_flight, timeout=min(POLL_S, grace))
        self.config.timeout_graceful_shutdown = max(0, deadline - time.monotonic())  # type: ignore[assignment]  # any number
        await super().shutdown(sockets)


def _close_after_response(connection: Any) -> None:
    """Close the connection after its response in flight, if any, and announce it by `Connection: close`."""
    if connection.cycle and not connection.cycle.response_complete:
        connection.shutdown()
