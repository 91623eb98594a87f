"""A caller who leaves before its answer is there."""

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from app.api.http.disconnects import CALLER, EXTENSION, Caller, while_connected

pytestmark = pytest.mark.anyio


class Leaving:
    """A caller that a test sends away, to a server that tells of it or to one that doesn't."""

    def __init__(self, *, told: bool) -> None:
        self._gone = asyncio.Event()
        self.heard = 0
        self._caller = Caller(self._hear)
        self.scope: dict[str, Any] = {"extensions": {EXTENSION: {CALLER: self._caller}}} if told else {}

    def _hear(self) -> None:
        self.heard += 1

    def leave(self) -> None:
        self._gone.set()
        self._caller.leave()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}


@pytest.fixture(params=[True, False], ids=["the server tells", "the server does not tell"])
async def caller(request: pytest.FixtureRequest) -> Leaving:
    return Leaving(told=request.param)


async def failing() -> None:
    await asyncio.sleep(0)
    raise LookupError


async def test_work_ends_with_its_result_or_its_error_while_the_caller_waits(caller: Leaving) -> None:
    assert await while_connected(caller.scope, caller.receive, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(LookupError):
        await while_connected(caller.scope, caller.receive, failing())


async def test_work_is_cancelled_when_the_caller_leaves_and_the_task_goes_on(caller: Leaving) -> None:
    ended = []

    async def endless() -> None:
        asyncio.get_running_loop().call_soon(caller.leave)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with pytest.raises(ClientDisconnect):
        await while_connected(caller.scope, caller.receive, endless())
    task = asyncio.current_task()
    assert task
    assert (ended, task.cancelling()) == (["cancelled"], 0)
    await asyncio.sleep(0)  # is not cancelled any more


async def test_who_left_before_the_work_began_has_none_done() -> None:
    caller = Leaving(told=True)
    caller.leave()
    with pytest.raises(ClientDisconnect):
        await while_connected(caller.scope, caller.receive, failing())


async def test_who_leaves_after_the_work_cancels_nothing() -> None:
    caller = Leaving(told=True)
    await while_connected(caller.scope, caller.receive, asyncio.sleep(0))
    caller.leave()
    await asyncio.sleep(0)


async def test_a_server_that_gives_up_is_not_taken_for_a_caller_who_leaves(caller: Leaving) -> None:
    begun = asyncio.Event()

    async def endless() -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    serving = asyncio.ensure_future(while_connected(caller.scope, caller.receive, endless()))
    await begun.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_the_connection_is_listened_to_while_work_is_done() -> None:
    caller = Leaving(told=True)
    await while_connected(caller.scope, caller.receive, asyncio.sleep(0))
    assert caller.heard == 1
