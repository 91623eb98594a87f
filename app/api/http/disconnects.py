"""A caller who leaves before its answer is there: the work that is done for it ends.

A server of ours tells of its callers by an ASGI extension; under another one all is seen from `receive`.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

EXTENSION: Final = "seqserve"  # its dict has the Caller under CALLER
CALLER: Final = "caller"

Result = TypeVar("Result")


class Caller:
    """Who asks, at the other end of one connection; `listen` has the server notice that it leaves."""

    def __init__(self, listen: Callable[[], None]) -> None:
        self.is_sending = False  # a request, of which not all is here
        self._listen = listen
        self._left = False
        self._waiting: asyncio.Task[Any] | None = None

    def has_left(self) -> bool:
        """Whether nobody is there any more."""
        return self._left

    def leave(self) -> None:
        """Note that it has left, and cancel what is done for it."""
        self._left = True
        if self._waiting:
            self._waiting.cancel()

    async def wait_for(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`, as `while_connected` has it, done in the task that calls."""
        if self.has_left():
            work.close()
            raise ClientDisconnect
        self._listen()
        self._waiting = task = asyncio.current_task()
        assert task
        try:
            return await work
        except asyncio.CancelledError:
            if not self.has_left() or task.uncancel():  # it is the server that gives up
                raise
            raise ClientDisconnect from None
        finally:
            self._waiting = None


def has_sent(scope: Scope) -> bool:
    """Whether the whole body is known to be here, so that `receive` waits for nothing."""
    caller = _caller(scope)
    return caller is not None and not caller.is_sending


async def while_connected(scope: Scope, receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the caller leaves; then raise ClientDisconnect.

    The body must have been received: where the server does not tell who asks, what comes next on `receive` is the
    caller's leaving.
    """
    if caller := _caller(scope):
        return await caller.wait_for(work)
    return await _while_unheard(receive, work)


def _caller(scope: Scope) -> Caller | None:
    caller: Caller | None = scope.get("extensions", {}).get(EXTENSION, {}).get(CALLER)
    return caller


async def _while_unheard(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait((working, leaving))


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
