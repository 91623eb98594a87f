"""A client that disconnects before its answer."""

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from app.api.http.disconnects import CONNECTION, EXTENSION, ClientConnection, while_connected

pytestmark = pytest.mark.anyio


class Client:
    """A client whose disconnect the server reports through the extension, or does not."""

    def __init__(self, *, reported: bool) -> None:
        self._gone = asyncio.Event()
        self.listened = 0
        self._client = ClientConnection(self._listen)
        self.scope: dict[str, Any] = {"extensions": {EXTENSION: {CONNECTION: self._client}}} if reported else {}

    def _listen(self) -> None:
        self.listened += 1

    def disconnect(self) -> None:
        self._gone.set()
        self._client.disconnect()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}


@pytest.fixture(params=[True, False], ids=["with the extension", "without it"])
async def client(request: pytest.FixtureRequest) -> Client:
    return Client(reported=request.param)


async def failing() -> None:
    await asyncio.sleep(0)
    raise LookupError


async def test_work_returns_its_result_or_raises_its_error(client: Client) -> None:
    assert await while_connected(client.scope, client.receive, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(LookupError):
        await while_connected(client.scope, client.receive, failing())


async def test_a_disconnect_cancels_the_work_but_not_the_task(client: Client) -> None:
    outcome = []

    async def endless() -> None:
        asyncio.get_running_loop().call_soon(client.disconnect)
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            outcome.append("cancelled")
            raise

    with pytest.raises(ClientDisconnect):
        await while_connected(client.scope, client.receive, endless())
    task = asyncio.current_task()
    assert task
    assert (outcome, task.cancelling()) == (["cancelled"], 0)
    await asyncio.sleep(0)  # is not cancelled any more


async def test_work_is_not_started_after_a_disconnect() -> None:
    client = Client(reported=True)
    client.disconnect()
    with pytest.raises(ClientDisconnect):
        await while_connected(client.scope, client.receive, failing())


async def test_a_disconnect_after_the_work_cancels_nothing() -> None:
    client = Client(reported=True)
    await while_connected(client.scope, client.receive, asyncio.sleep(0))
    client.disconnect()
    await asyncio.sleep(0)


async def test_a_cancellation_by_the_server_is_not_a_disconnect(client: Client) -> None:
    started = asyncio.Event()

    async def endless() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    serving = asyncio.ensure_future(while_connected(client.scope, client.receive, endless()))
    await started.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_the_server_listens_to_the_connection_during_the_work() -> None:
    client = Client(reported=True)
    await while_connected(client.scope, client.receive, asyncio.sleep(0))
    assert client.listened == 1
