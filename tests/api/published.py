"""The service with the published models, in process."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.api.conftest import talk

STORE = Path(__file__).parents[2] / "models_store"


class Client:
    """A client for tests that are no coroutines, as hypothesis runs them."""

    def __init__(self, runner: asyncio.Runner, client: httpx.AsyncClient) -> None:
        self._runner = runner
        self._client = client

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._client.get(path, **options))

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self._client.post(path, **options))


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    app = create_app(Settings(store=STORE))
    lifespan = app.router.lifespan_context(app)
    with asyncio.Runner() as runner:
        state = runner.run(lifespan.__aenter__())
        assert state
        runner.run(state["registry"].opened())
        yield Client(runner, talk(app, state))
        runner.run(lifespan.__aexit__(None, None, None))
