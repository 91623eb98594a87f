"""Cancellation of a request's work when its client disconnects.

The project's own server reports disconnects through an ASGI extension; under other servers `receive` reports them.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

EXTENSION: Final = "seqserve"  # a dict with the ClientConnection under CONNECTION
CONNECTION: Final = "connection"

Result = TypeVar("Result")


class ClientConnection:
    """The client's end of one connection; `listen` makes the server detect a disconnect."""

    def __init__(self, listen: Callable[[], None]) -> None:
        self.is_sending = False  # a request has started and not yet arrived completely
        self._listen = listen
        self._disconnected = False
        self._waiting: asyncio.Task[Any] | None = None

    def has_disconnected(self) -> bool:
        """Return whether the client has disconnected."""
        return self._disconnected

    def disconnect(self) -> None:
        """Record that the client has disconnected, and cancel the work done for it."""
        self._disconnected = True
        if self._waiting:
            self._waiting.cancel()

    async def wait_for(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` in the current task, as `while_connected` does."""
        if self.has_disconnected():
            work.close()
            raise ClientDisconnect
        self._listen()
        self._waiting = task = asyncio.current_task()
        assert task
        try:
            return await work
        except asyncio.CancelledError:
            if not self.has_disconnected() or task.uncancel():  # cancelled by the server
                raise
            raise ClientDisconnect from None
        finally:
            self._waiting = None


def is_complete(scope: Scope) -> bool:
    """Return whether the whole body is known to have arrived, so that `receive` never waits."""
    connection = _connection(scope)
    return connection is not None and not connection.is_sending


async def while_connected(scope: Scope, receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of `work`; cancel it and raise ClientDisconnect when the client disconnects.

    The body must have been received: without the extension, the next message of `receive` is the disconnect.
    """
    if connection := _connection(scope):
        return await connection.wait_for(work)
    return await _while_receiving(receive, work)


def _connection(scope: Scope) -> ClientConnection | None:
    connection: ClientConnection | None = scope.get("extensions", {}).get(EXTENSION, {}).get(CONNECTION)
    return connection


async def _while_receiving(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    working = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait((working, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        disconnect.cancel()
        await asyncio.wait((working, disconnect))


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
