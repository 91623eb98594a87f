"""A service whose model gives the answers of a test."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.types import Receive, Scope, Send

from app.bundle import Bundle
from app.errors import Overloaded
from app.main import create_app
from app.manifest import CorpusEntry, FileEntry
from app.runtime.families import FAMILIES
from app.runtime.families.language_model import Suggest, Suggestion, Suggestions
from app.runtime.loading import Loaded
from app.runtime.metrics import Metrics
from app.runtime.onnx_session import Precision
from app.runtime.registry import Registry, Served
from app.runtime.scores import Alternative, TextScore, TokenScore
from app.runtime.scoring import Score
from app.server import protocol
from app.settings import Settings
from tests.manifests import tiny_manifest

EMPTY_STORE = Path(__file__).parent  # it has no models

Answer = Callable[[Any, float | None], Awaitable[Any]]


async def plausible(payload: Any, deadline: float | None) -> Any:
    """Any answer that a real model might give."""
    if isinstance(payload, Suggest):
        return Suggestions([Suggestion("the", 0.5, -0.693)], len(payload.text.split()) + 1, ["zyx"], 1)
    assert isinstance(payload, Score)
    words = payload.text.split()
    alternatives = [Alternative("the", -1.5)] * payload.alternatives
    rows = [TokenScore(word, 0, 1, -2.0, 1, False, alternatives) for word in [*words, "<eos>"]]
    return TextScore(
        log_likelihood=-2.0 * len(rows),
        tokens=len(rows),
        sentences=1,
        characters=len(payload.text),
        bytes=len(payload.text.encode()),
        words=len(words),
        token_scores=rows if payload.per_token else None,
    )


class BoundedQueue:
    """A model with room for so many payloads, each of which takes as long as the others need to come in."""

    def __init__(self, room: int, answering: Answer) -> None:
        self.room = room
        self.waiting = self.most = 0
        self._answering = answering

    async def answer(self, payload: Any, deadline: float | None) -> Any:
        if self.waiting >= self.room:
            raise Overloaded("full")
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        return await self._answering(payload, deadline)


class Clock:
    """A clock that tests set."""

    time = 1000.0

    def __call__(self) -> float:
        return self.time


class NoScheduler:
    """A `Scheduler` that records `close`."""

    closed = False

    async def close(self) -> None:
        self.closed = True


@dataclass(eq=False)
class FakeServed(Served):
    """`Served` with an answer of the test's choice."""

    name: str
    bundle: Bundle
    answering: Answer = plausible

    def __post_init__(self) -> None:
        name = self.name
        super().__init__(
            Loaded(self.bundle, cast(Any, None)), cast(Any, NoScheduler()), cast(Any, None), FAMILIES["digits"]
        )
        self.name = name

    @property
    def versions(self) -> list[str]:
        return ["1", "2"]

    @property
    def precision(self) -> Precision:
        return self.manifest.served

    @property
    def closed(self) -> bool:
        return cast(NoScheduler, self.scheduler).closed

    async def answer(self, payload: Any, *, deadline: float | None = None, bulk: bool = False) -> Any:  # noqa: ARG002
        return await self.answering(payload, deadline)


class Endless:
    """An answer that never comes."""

    def __init__(self) -> None:
        self.started, self.cancelled = threading.Event(), threading.Event()

    async def __call__(self, payload: Any, deadline: float | None) -> Any:  # noqa: ARG002  # as `answer`
        self.started.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self.cancelled.set()


class FakeRegistry(Registry):
    """`Registry` of fakes, each of every family."""

    def __init__(self, *models: FakeServed, refused: dict[str, str] | None = None) -> None:
        metrics = Metrics(CollectorRegistry())
        super().__init__(EMPTY_STORE, threads=1, queue_size=8, batch_size=8, cache_bytes=0, metrics=metrics)
        self.load()
        self._served = {model.name: model for model in models}
        self._rejected = refused or {}

    def get(self, name: str | None, family: str) -> Served:
        families = [served.manifest.family for served in self.served() if name in (None, served.name)]
        return super().get(name, families[0] if families else family)


def service(*models: FakeServed, refused: dict[str, str] | None = None, **settings: Any) -> FastAPI:
    """The service with these models instead of a store's."""
    return create_app(Settings(**settings), FakeRegistry(*models, refused=refused))


@asynccontextmanager
async def connect(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of `app`, which lives as long."""
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        yield client


def talk(app: FastAPI, state: Any) -> httpx.AsyncClient:
    """A client of `app` in its lifespan's `state`."""

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": dict(state)}, receive, send)

    return httpx.AsyncClient(transport=httpx.ASGITransport(cast(Any, with_state)), base_url="http://localhost")


@contextmanager
def listening(app: FastAPI, http: type[asyncio.Protocol] | None = None) -> Iterator[socket.socket]:
    """A connection to a real server of `app`, with the program's own bounds unless a protocol has others."""
    config = uvicorn.Config(
        app,
        http=http or protocol.limited(100),
        ws="none",
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), timeout=30) as connection:
                yield connection
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Registries load once this is set."""
    load, go = Registry.load, threading.Event()

    def slow(registry: Registry) -> Registry:
        go.wait()
        return load(registry)

    monkeypatch.setattr(Registry, "load", slow)
    return go


@pytest.fixture
def served(tmp_path: Path) -> FakeServed:
    return model_in(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """A service with the default settings for requests that leave nothing behind: it takes 50 ms to build."""
    return service(model_in(tmp_path_factory.mktemp("shared")))


def model_in(folder: Path) -> FakeServed:
    """Return a language model `ptb` whose bundle is in this folder."""
    card = b"# A model\n"
    (folder / "README.md").write_bytes(card)
    files = {"README.md": FileEntry(sha256="2" * 64, bytes=len(card)), "step.onnx": FileEntry(sha256="3" * 64, bytes=7)}
    manifest = tiny_manifest(
        "language_model",
        model="ptb",
        version="2",
        created="2024-01-01T00:00:00Z",
        config={"hidden": 200},
        normalisation="ptb",
        vocabulary_sha256="0" * 64,
        corpus=CorpusEntry(name="ptb", terms="none", sha256={"ptb.train.txt": "1" * 64}),
        metrics={"test_perplexity": 80.5},
        parameters=4_000_000,
        files=files,
    )
    return FakeServed("ptb", Bundle(folder, manifest))
