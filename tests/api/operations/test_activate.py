"""POST /models/{model}/activate and SIGHUP; what an exchange does is tested in tests/runtime/test_versions.py."""

import asyncio
import errno
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import bundle as bundles
from app.main import create_app
from app.runtime import versions
from app.runtime.registry import Registry
from app.settings import Settings
from tests.api.conftest import FakeServed, connect, listening, service, talk
from tests.conftest import flip_a_bit

pytestmark = pytest.mark.anyio

PATH = "/models/tiny/activate"
TO_2 = {"version": "2"}
DONE = {"model": "tiny", "version": "2", "previous": "1", "persisted": True, "reason": None}


@asynccontextmanager
async def running(store: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Registry]]:
    """A client of a service that has loaded the store, and its registry."""
    app = create_app(Settings(store=store))
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        assert state is not None
        registry: Registry = state["registry"]
        await registry.opened()
        yield client, registry


async def answering(client: httpx.AsyncClient) -> str:
    """The version that answers a request."""
    response = await client.post("/next-word", json={"text": "the"})
    assert response.status_code == 200
    version: str = response.json()["version"]
    return version


class Held:
    """A registry's `load_version` that waits in its thread until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
        self.started, self.go, self._load = threading.Event(), threading.Event(), registry.load_version
        monkeypatch.setattr(registry, "load_version", self)

    def __call__(self, name: str, version: str) -> Any:
        self.started.set()
        self.go.wait()
        return self._load(name, version)


async def test_another_version_answers_and_is_shown_by_models(store: Path) -> None:
    async with running(store) as (client, _):
        assert await answering(client) == "1"
        response = await client.post(PATH, json=TO_2)
        assert (response.status_code, response.json()) == (200, DONE)
        assert await answering(client) == "2"
        (model,) = (await client.get("/models")).json()["models"]
        assert (model["version"], model["versions"], model["ready"]) == ("2", ["1", "2"], True)
        assert (await client.get("/models/tiny")).json()["version"] == "2"


async def test_a_version_that_cannot_be_served_is_a_conflict_with_its_reason(store: Path) -> None:
    flip_a_bit(store / "tiny" / "2" / "weights.safetensors")
    async with running(store) as (client, _):
        response = await client.post(PATH, json=TO_2)
    reported = response.json()
    assert (response.status_code, reported["status"], reported["type"]) == (409, 409, "/problems/unservable")
    assert "weights.safetensors: expected sha256" in reported["detail"]


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        (PATH, {"version": "3"}, 404, "unknown-version"),
        (PATH, {"version": "../1"}, 404, "unknown-version"),
        ("/models/ptb/activate", TO_2, 404, "unknown-model"),
        ("/models/..%2Fstore%2Ftiny/activate", TO_2, 404, None),  # no route has a slash there
        ("/models/%ED%A0%BD/activate", TO_2, 404, "unknown-model"),
        (PATH, {}, 422, "invalid-field"),
        (PATH, {"version": 2}, 422, "invalid-field"),
        (PATH, {"version": "2", "force": True}, 422, "invalid-field"),
        (PATH, {"version": "2" * 5000}, 413, "too-large"),
    ],
)
async def test_an_unknown_name_or_an_invalid_body_is_a_problem_and_changes_nothing(
    store: Path, path: str, body: Mapping[str, object], status: int, kind: str | None
) -> None:
    async with running(store) as (client, _):
        response = await client.post(path, json=body)
        assert await answering(client) == "1"
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert response.json()["type"] == (f"/problems/{kind}" if kind else "about:blank")


@pytest.mark.parametrize(("media", "status"), [("application/json", 400), ("text/plain", 415)])
async def test_a_body_that_is_not_json_is_rejected(store: Path, media: str, status: int) -> None:
    async with running(store) as (client, _):
        response = await client.post(PATH, content=b'{"version": ', headers={"Content-Type": media})
    assert response.status_code == status


async def test_a_store_that_cannot_be_written_is_the_reason_in_the_answer(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async with running(store) as (client, _):
        monkeypatch.setattr(bundles, "activate", refuse)
        reported = (await client.post(PATH, json=TO_2)).json()
    assert (reported["version"], reported["persisted"]) == ("2", False)
    assert "CURRENT: can't be written: Read-only file system" in reported["reason"]


async def test_while_models_load_nothing_is_activated(store: Path, loading: threading.Event) -> None:
    app = create_app(Settings(store=store))
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        response = await client.post(PATH, json=TO_2)
        loading.set()
    assert (response.status_code, response.json()["detail"]) == (503, "loading")
    assert "retry-after" in response.headers


async def test_a_started_activation_goes_on_when_the_client_disconnects(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(store) as (client, registry):
        held = Held(monkeypatch, registry)
        activating = asyncio.ensure_future(client.post(PATH, json=TO_2))
        assert await asyncio.to_thread(held.started.wait, 30)
        activating.cancel()
        await asyncio.wait((activating,))
        held.go.set()
        again = await client.post(PATH, json=TO_2)  # waits for the first
        assert again.json()["previous"] == "2"
    assert bundles.current(store, "tiny") == "2"


async def test_closing_the_service_waits_for_an_activation(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(store) as (_, registry):
        held = Held(monkeypatch, registry)
        activating = asyncio.ensure_future(versions.activate(registry, "tiny", "2"))
        assert await asyncio.to_thread(held.started.wait, 30)
        held.go.set()
    assert activating.done()
    assert (await activating).previous == "1"


async def test_sighup_serves_what_current_names(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(store) as (client, _):
        bundles.activate(store, "tiny", "2")
        with caplog.at_level(logging.INFO, "app.runtime.versions"):
            os.kill(os.getpid(), signal.SIGHUP)
            async with asyncio.timeout(30):
                while await answering(client) == "1":
                    pass
    assert "tiny: serves 2, before 1" in caplog.text


async def test_a_reload_after_loading_failed_is_logged_as_failed(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> Registry:
        raise MemoryError("no room")

    monkeypatch.setattr(Registry, "load", fail)
    async with running(store) as (_, registry):
        await versions.reload(registry)
    assert "reload failed: could not be loaded" in caplog.text


def test_a_service_outside_the_main_thread_ignores_sighup(served: FakeServed, caplog: pytest.LogCaptureFixture) -> None:
    before = signal.getsignal(signal.SIGHUP)
    with caplog.at_level(logging.DEBUG, "app.main"), listening(service(served)) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: service\r\n\r\n")
        assert connection.recv(12) == b"HTTP/1.1 200"
        assert signal.getsignal(signal.SIGHUP) is before
    assert "SIGHUP is ignored" in caplog.text


async def test_without_keys_only_this_machine_activates_a_version(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        client._transport.client = ("10.0.0.1", 1)  # type: ignore[attr-defined]  # noqa: SLF001
        assert (await client.post("/models/ptb/activate", json=TO_2)).status_code == 403
