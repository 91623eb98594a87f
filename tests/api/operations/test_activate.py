"""POST /models/{model}/activate."""

import asyncio
import errno
import logging
import os
import shutil
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

pytestmark = pytest.mark.anyio

PATH = "/models/tiny/activate"
TO_2 = {"version": "2"}
DONE = {"model": "tiny", "version": "2", "previous": "1", "persisted": True, "reason": None}


@pytest.fixture
def store(two_versions: Path, tmp_path: Path) -> Path:
    """A store of its own for this test: `tiny` 1, which is current, and 2."""
    return Path(shutil.copytree(two_versions, tmp_path / "store"))


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


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Held:
    """A registry's `load_version` that waits in its thread until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, registry: Registry) -> None:
        self.begun, self.go, self._load = threading.Event(), threading.Event(), registry.load_version
        monkeypatch.setattr(registry, "load_version", self)

    def __call__(self, name: str, version: str) -> Any:
        self.begun.set()
        self.go.wait()
        return self._load(name, version)


async def test_another_version_answers_and_everything_tells_so(store: Path) -> None:
    async with running(store) as (client, _):
        assert await answering(client) == "1"
        response = await client.post(PATH, json=TO_2)
        assert (response.status_code, response.json()) == (200, DONE)
        assert await answering(client) == "2"
        (model,) = (await client.get("/models")).json()["models"]
        assert (model["version"], model["versions"], model["ready"]) == ("2", ["1", "2"], True)
        assert (await client.get("/models/tiny")).json()["version"] == "2"
        assert (await client.get("/readyz")).status_code == 200
        figures = (await client.get("/metrics")).text.splitlines()
        back = await client.post(PATH, json={"version": "1"})
    reported = [line for line in figures if line.startswith("seqserve_model_ready")]
    assert reported == ['seqserve_model_ready{model="tiny",version="2"} 1.0']
    assert 'seqserve_swaps_total{model="tiny",outcome="switched"} 1.0' in figures
    assert (back.json()["previous"], back.json()["version"]) == ("2", "1")
    assert bundles.current(store, "tiny") == "1"


async def test_the_version_that_answers_already_is_no_work(store: Path) -> None:
    async with running(store) as (client, registry):
        serving = registry.get("tiny", "language_model")
        response = await client.post(PATH, json={"version": "1"})
        assert registry.get("tiny", "language_model") is serving
    assert response.status_code == 200
    assert response.json() == {"model": "tiny", "version": "1", "previous": "1", "persisted": True, "reason": None}


async def test_a_version_that_cannot_be_trusted_is_a_conflict_that_says_why(store: Path) -> None:
    flip_a_bit(store / "tiny" / "2" / "weights.safetensors")
    async with running(store) as (client, _):
        response = await client.post(PATH, json=TO_2)
        assert await answering(client) == "1"
        assert (await client.get("/readyz")).status_code == 200
        figures = (await client.get("/metrics")).text
    reported = response.json()
    assert (response.status_code, reported["status"], reported["type"]) == (409, 409, "/problems/unservable")
    assert "weights.safetensors: expected sha256" in reported["detail"]
    assert 'seqserve_swaps_total{model="tiny",outcome="refused"} 1.0' in figures
    assert bundles.current(store, "tiny") == "1"


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
async def test_what_cannot_be_meant_is_told_and_changes_nothing(
    store: Path, path: str, body: Mapping[str, object], status: int, kind: str | None
) -> None:
    async with running(store) as (client, _):
        response = await client.post(path, json=body)
        assert await answering(client) == "1"
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert response.json()["type"] == (f"/problems/{kind}" if kind else "about:blank")


@pytest.mark.parametrize(("media", "status"), [("application/json", 400), ("text/plain", 415)])
async def test_what_is_not_json_is_not_read(store: Path, media: str, status: int) -> None:
    async with running(store) as (client, _):
        response = await client.post(PATH, content=b'{"version": ', headers={"Content-Type": media})
    assert response.status_code == status


async def test_a_store_that_cannot_be_written_is_told_and_the_version_answers(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async with running(store) as (client, _):
        monkeypatch.setattr(bundles, "activate", refuse)
        reported = (await client.post(PATH, json=TO_2)).json()
        assert await answering(client) == "2"
    assert (reported["version"], reported["persisted"]) == ("2", False)
    assert "CURRENT: can't be written: Read-only file system" in reported["reason"]


async def test_a_model_that_was_rejected_at_start_is_healed(store: Path) -> None:
    flip_a_bit(store / "tiny" / "1" / "weights.safetensors")
    async with running(store) as (client, _):
        assert (await client.get("/readyz")).status_code == 503
        reported = (await client.post(PATH, json=TO_2)).json()
        assert (await client.get("/readyz")).status_code == 200
        assert await answering(client) == "2"
    assert (reported["previous"], reported["persisted"]) == (None, True)


async def test_while_models_load_nothing_is_activated(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, go = Registry.load, threading.Event()

    def slow(registry: Registry) -> Registry:
        go.wait()
        return load(registry)

    monkeypatch.setattr(Registry, "load", slow)
    app = create_app(Settings(store=store))
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        response = await client.post(PATH, json=TO_2)
        go.set()
    assert (response.status_code, response.json()["detail"]) == (503, "loading")
    assert "retry-after" in response.headers


async def test_what_was_begun_goes_on_when_the_caller_leaves(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(store) as (client, registry):
        held = Held(monkeypatch, registry)
        asking = asyncio.ensure_future(client.post(PATH, json=TO_2))
        assert await asyncio.to_thread(held.begun.wait, 30)
        asking.cancel()
        await asyncio.wait((asking,))
        held.go.set()
        again = await client.post(PATH, json=TO_2)  # waits for its turn
        assert again.json()["previous"] == "2"
    assert bundles.current(store, "tiny") == "2"


async def test_who_closes_the_service_waits_for_a_change(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(store) as (_, registry):
        held = Held(monkeypatch, registry)
        activating = asyncio.ensure_future(versions.activate(registry, "tiny", "2"))
        assert await asyncio.to_thread(held.begun.wait, 30)
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


async def test_where_loading_failed_a_reload_is_told_to_be_none(
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


async def test_without_keys_a_version_is_activated_from_this_machine_alone(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        client._transport.client = ("10.0.0.1", 1)  # type: ignore[attr-defined]  # noqa: SLF001
        assert (await client.post("/models/ptb/activate", json=TO_2)).status_code == 403
