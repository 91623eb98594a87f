"""Overhead of a request beyond the model's answer, in microseconds of one core: the median of rounds.

    python tests/bench/overhead.py

The whole path is POST /next-word from received to sent bytes without the kernel, with a model that is instant. The
echo is a FastAPI application that validates the same request and serializes the same answer, under plain uvicorn. Each
middleware is measured before an application that answers at once. The last line is JSON.
"""

import asyncio
import io
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import uvicorn
import uvloop
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from app.api.http import keys, logs, rate_limits  # noqa: E402  # of this tree, however it is run
from app.api.http.authorization import AccessControl  # noqa: E402
from app.api.http.context import RequestContext  # noqa: E402
from app.api.http.keys import Keys  # noqa: E402
from app.api.http.middleware import RequestLogging  # noqa: E402
from app.api.http.rate_limits import RateLimiting  # noqa: E402
from app.runtime.families.language_model import Suggestion, Suggestions  # noqa: E402
from app.runtime.metrics import (  # noqa: E402
    REQUEST_USAGE,
    Metrics,
    RequestUsage,
)
from app.server import protocol  # noqa: E402
from tests.api.conftest import FakeServed, service  # noqa: E402

ROUNDS: Final = 15
REQUESTS: Final = 2000
BODY: Final = b'{"text": "the company said its third quarter "}'
REQUEST: Final = (
    b"POST /next-word HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    % (
        len(BODY),
        BODY,
    )
)
HEADERS: Final = [(b"host", b"a"), (b"user-agent", b"b"), (b"accept", b"*/*"), (b"content-type", b"application/json")]


class Word(BaseModel):
    """A suggestion of the echo."""

    text: str
    probability: float
    log_probability: float


class EchoRequest(BaseModel):
    """The echo's request."""

    text: str
    top_k: int = 5
    words: int = 1
    complete: bool = False
    model: str | None = None


class EchoAnswer(BaseModel):
    """The echo's answer."""

    model: str
    version: str
    suggestions: list[Word]
    context_tokens: int
    unknown_words: list[str]
    cached_tokens: int


async def echoed(request: EchoRequest) -> EchoAnswer:
    words = [Word(text="the", probability=0.5, log_probability=-0.693)] * 5
    return EchoAnswer(
        model="ptb", version="1", suggestions=words, context_tokens=len(request.text), unknown_words=[], cached_tokens=0
    )


def echo() -> FastAPI:
    app = FastAPI()
    app.add_api_route("/next-word", echoed, methods=["POST"])
    return app


def ours(**settings: Any) -> FastAPI:
    """Return the service with a model that answers at once."""
    found = Suggestions([Suggestion("the", 0.5, -0.693)] * 5, 7, [], 6)

    async def at_once(payload: Any, deadline: float | None) -> Suggestions:
        return found

    bundle = SimpleNamespace(manifest=SimpleNamespace(model="ptb", version="1", family="language_model"))
    return service(FakeServed("ptb", cast(Any, bundle), at_once), **settings)


class Wire(asyncio.Transport):
    """A transport that records the written bytes."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 1), "peername": ("127.0.0.1", 2)})
        self.written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """Do nothing."""

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""


async def path_us(app: FastAPI, protocol: type[HttpToolsProtocol]) -> float:
    """Return the event loop's CPU time per request, from received to sent bytes."""
    config = uvicorn.Config(app, http=protocol, ws="none", log_config=None, server_header=False, proxy_headers=False)
    config.load()
    async with app.router.lifespan_context(app) as state:
        server = ServerState()
        serving = protocol(config, server, dict(state or {}))
        wire = Wire()
        serving.connection_made(wire)
        taken = []
        for _ in range(ROUNDS):
            began = time.thread_time()
            for _ in range(REQUESTS):
                wire.written.clear()
                serving.data_received(REQUEST)
                (answering,) = server.tasks
                await answering
            taken.append((time.thread_time() - began) / REQUESTS * 1e6)
        serving.connection_lost(None)
    assert wire.written[0].startswith(b"HTTP/1.1 200 OK")
    return statistics.median(taken)


async def whole() -> dict[str, float]:
    return {
        "the whole path": await path_us(ours(), protocol.limited(1)),
        "the whole path, with rates": await path_us(ours(rate_limit="1000000000/hour"), protocol.limited(1)),
        "the echo's whole path": await path_us(echo(), HttpToolsProtocol),
    }


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 200."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})


async def unread() -> Message:
    return {"type": "http.disconnect"}


async def unsent(message: Message) -> None:
    """Discard the message."""


async def microseconds(app: ASGIApp, headers: list[tuple[bytes, bytes]]) -> float:
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(REQUESTS):
            state = {"context": RequestContext("0" * 32, 0.0)}
            scope = {"type": "http", "method": "POST", "path": "/next-word", "headers": headers, "state": state}
            await app({**scope, "client": ("127.0.0.1", 1)}, unread, unsent)
        taken.append((time.perf_counter() - began) / REQUESTS * 1e6)
    return statistics.median(taken)


def scheduler_us() -> float:
    """Return the cost of a request's usage in the scheduler: one lookup, then one recorded step."""
    REQUEST_USAGE.set(RequestUsage())
    began = time.perf_counter()
    for _ in range(100_000):
        usage = REQUEST_USAGE.get()
        assert usage
        usage.accept(1.0)
        for one in {each for each in (usage,) if each}:
            one.record_step(1.0, 2.0)
    return (time.perf_counter() - began) / 100_000 * 1e6


async def measured(folder: Path) -> dict[str, float]:
    secret = keys.create(folder / "keys", "bench", "predict", None)
    for n in range(100):
        keys.create(folder / "keys", f"other-{n}", "predict", None)
    metrics = Metrics(CollectorRegistry())
    routes, keyed = ours().routes, [*HEADERS, (b"authorization", f"Bearer {secret}".encode())]
    limits = rate_limits.open_limiter("1000000000/hour", "memory://", metrics)
    found = Keys(folder / "keys")
    stacks: dict[str, tuple[ASGIApp, list[tuple[bytes, bytes]]]] = {
        "nothing": (answer, HEADERS),
        "access, no keys": (AccessControl(answer, None, routes), HEADERS),
        "access, 101 keys": (AccessControl(answer, found, routes), keyed),
        "access, 101 keys, and rates": (AccessControl(RateLimiting(answer, limits), found, routes), keyed),
        "request id, headers, metrics, log line": (RequestLogging(answer, metrics), HEADERS),
    }
    base = await microseconds(*stacks.pop("nothing"))
    return {name: await microseconds(*stack) - base for name, stack in stacks.items()}


def main() -> None:
    """Print a table."""
    log = logging.getLogger("app")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.addHandler(logs.handler("json", io.StringIO()))
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(whole()) | runner.run(measured(Path(folder)))
    figures["a request's usage, in the scheduler"] = scheduler_us()
    for name, figure in figures.items():
        print(f"{name:44}{figure:8.1f} us")
    print(json.dumps({name: round(figure, 2) for name, figure in figures.items()}))


if __name__ == "__main__":
    main()
