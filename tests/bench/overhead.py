"""What keys, rates and the log cost a request, in microseconds of one core: the median of rounds.

    python tests/bench/overhead.py

Each piece stands before an application that answers at once. The last line is JSON.
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
from typing import Any, Final

from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ROOT: Final = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from app.api import keys, logs, rates  # noqa: E402  # of this tree, however it is run
from app.api.access import NEEDED, Access  # noqa: E402
from app.api.keys import Keys  # noqa: E402
from app.api.middleware import Measure  # noqa: E402
from app.api.rates import Rated  # noqa: E402
from app.api.security import Secured  # noqa: E402
from app.runtime.account import ACCOUNT, Account  # noqa: E402
from app.runtime.metrics import Metrics  # noqa: E402

ROUNDS: Final = 15
REQUESTS: Final = 2000
HEADERS: Final = [(b"host", b"a"), (b"user-agent", b"b"), (b"accept", b"*/*"), (b"content-type", b"application/json")]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Say 200."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b"{}"})


async def unread() -> Message:
    return {"type": "http.disconnect"}


async def unsent(message: Message) -> None:
    """Drop it."""


async def microseconds(app: ASGIApp, headers: list[tuple[bytes, bytes]]) -> float:
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(REQUESTS):
            state: dict[str, Any] = {"request_id": "0" * 32}
            scope = {"type": "http", "method": "POST", "path": "/next-word", "headers": headers, "state": state}
            await app({**scope, "client": ("127.0.0.1", 1)}, unread, unsent)
        taken.append((time.perf_counter() - began) / REQUESTS * 1e6)
    return statistics.median(taken)


def batcher_us() -> float:
    """What a request's account costs the batcher: found once, then told of one turn."""
    ACCOUNT.set(Account())
    began = time.perf_counter()
    for _ in range(100_000):
        account = ACCOUNT.get()
        assert account
        account.accept(1.0)
        for one in {each for each in (account,) if each}:
            one.take_turn(1.0, 2.0)
    return (time.perf_counter() - began) / 100_000 * 1e6


async def measured(folder: Path) -> dict[str, float]:
    secret = keys.create(folder / "keys", "bench", "predict", None)
    for place in range(100):
        keys.create(folder / "keys", f"other-{place}", "predict", None)
    metrics = Metrics(CollectorRegistry())
    paths, keyed = list(NEEDED), [*HEADERS, (b"authorization", f"Bearer {secret}".encode())]
    limits = rates.open_rates("1000000000/hour", "memory://", metrics)
    found = Keys(folder / "keys")
    log = logging.getLogger("app.api.middleware")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.addHandler(logs.handler("json", io.StringIO()))
    stacks: dict[str, tuple[ASGIApp, list[tuple[bytes, bytes]]]] = {
        "nothing": (answer, HEADERS),
        "access, no keys": (Access(answer, None, paths), HEADERS),
        "access, 101 keys": (Access(answer, found, paths), keyed),
        "access, 101 keys, and rates": (Access(Rated(answer, limits), found, paths), keyed),
        "security headers": (Secured(answer), HEADERS),
        "metrics and the log's line": (Measure(answer, metrics), HEADERS),
    }
    base = await microseconds(*stacks.pop("nothing"))
    return {name: await microseconds(*stack) - base for name, stack in stacks.items()}


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measured(Path(folder)))
    figures["a request's account, in the batcher"] = batcher_us()
    for name, figure in figures.items():
        print(f"{name:36}{figure:8.1f} us")
    print(json.dumps({name: round(figure, 2) for name, figure in figures.items()}))


if __name__ == "__main__":
    main()
