"""Graceful shutdown of a real server under load."""

import asyncio
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx
import numpy as np
import pytest

from app.images import png
from tests.e2e.clients import Connection, Metrics, Response, connections, post_once, wait_until
from tests.e2e.conftest import serving

STORE = Path(__file__).parents[2] / "models_store"
GRACE_S: Final = 30
BATCH: Final = 2
ACCEPTED: Final = 16
WORK = {"text": "the company said profits rose " * 800}  # four chunks
KEYSTROKE = {"text": "the company said"}
STREAMS: Final = 8

pytestmark = pytest.mark.anyio


@contextmanager
def stoppable(store: Path) -> Iterator[tuple[httpx.URL, subprocess.Popen[str]]]:
    settings = {"SEQSERVE_BATCH_SIZE": str(BATCH), "SEQSERVE_GRACE_S": str(GRACE_S), "SEQSERVE_CACHE_MB": "0"}
    with serving(store, None, **settings) as (client, process):
        yield client.base_url, process


async def clean_exit(process: subprocess.Popen[str]) -> float:
    """Wait for a clean exit and return the seconds it took."""
    started = time.monotonic()
    assert await asyncio.to_thread(process.wait, 2 * GRACE_S) == 0
    return time.monotonic() - started


async def queue_work(url: httpx.URL, opened: list[Connection]) -> list[asyncio.Task[Response]]:
    """Request WORK over each connection and wait until all requests are queued."""
    for connection in opened:
        await connection.send("/perplexity", WORK)
    answers = [asyncio.create_task(connection.response()) for connection in opened]
    metrics = Metrics(url)
    await wait_until(lambda: metrics("queue_depth", model="tiny") >= len(opened) - BATCH)
    return answers


async def not_ready(url: httpx.URL) -> httpx.Response:
    """Wait until /readyz fails and return its response."""
    async with asyncio.timeout(GRACE_S):
        while (response := await asyncio.to_thread(httpx.get, url.join("/readyz"))).status_code == 200:
            pass
    return response


async def test_readiness_falls_first_and_accepted_work_is_finished(tiny_store: Path) -> None:
    with stoppable(tiny_store) as (url, process):
        async with connections(url, ACCEPTED) as opened:
            answers = await queue_work(url, opened)
            process.send_signal(signal.SIGTERM)
            ready = await not_ready(url)
            late = await post_once(url, "/perplexity", WORK)
            assert not all(answer.done() for answer in answers)
            found = await asyncio.gather(*answers)
        assert await clean_exit(process) < GRACE_S
        with pytest.raises(ConnectionRefusedError):
            await post_once(url, "/perplexity", WORK)
    assert (ready.status_code, ready.json()["models"]) == (
        503,
        [{"name": "tiny", "ready": False, "reason": "shutting down"}],
    )
    assert (late.status, late.json()["type"]) == (503, "/problems/not-ready")
    assert (late.headers["connection"], "retry-after" in late.headers) == ("close", True)
    assert [answer.status for answer in found] == [200] * ACCEPTED
    assert len({answer.content for answer in found}) == 1
    assert found[-1].headers["connection"] == "close"


@dataclass
class Typist:
    """A client that sends keystrokes until it is rejected."""

    url: httpx.URL
    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[float] = field(default_factory=list)  # times at which requests without a response were sent

    async def type(self) -> None:
        """Send keystrokes over one connection after another."""
        while not self.outcomes["refused"]:
            try:
                async with connections(self.url, 1) as (connection,):
                    await self._type(connection)
            except ConnectionRefusedError:
                self.outcomes["refused"] += 1
            except ConnectionResetError:  # before anything was sent: no longer accepted
                self.outcomes["closed"] += 1

    async def _type(self, connection: Connection) -> None:
        while True:
            try:
                answer = await connection.post("/next-word", KEYSTROKE)
            except ConnectionError:  # closed without a response
                self.outcomes["closed"] += 1
                self.lost.append(connection.sent)
                return
            self.outcomes[str(answer.status)] += 1
            if answer.headers.get("connection") == "close":
                return


async def test_requests_during_shutdown_get_200_or_503_or_a_closed_connection(tiny_store: Path) -> None:
    with stoppable(tiny_store) as (url, process):
        typists = [Typist(url) for _ in range(4)]
        async with connections(url, ACCEPTED) as opened, asyncio.TaskGroup() as group:
            for typist in typists:
                group.create_task(typist.type())
            answers = await queue_work(url, opened)
            stopped = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert [answer.status for answer in await asyncio.gather(*answers)] == [200] * ACCEPTED
        await clean_exit(process)
    outcomes = sum((typist.outcomes for typist in typists), Counter[str]())
    assert set(outcomes) <= {"200", "503", "closed", "refused"}
    assert outcomes["200"]
    assert outcomes["503"]
    assert outcomes["refused"] == len(typists)
    assert all(sent > stopped for typist in typists for sent in typist.lost)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
async def test_no_request_is_lost(tiny_store: Path, tmp_path: Path, workers: int, unix: bool) -> None:
    """Half of the clients keep their connections, half open one for each request; most have nothing else to do."""
    settings = {"SEQSERVE_WORKERS": str(workers)} | ({"SEQSERVE_UNIX_SOCKET": str(tmp_path / "socket")} if unix else {})
    with serving(tiny_store, None, **settings) as (client, process):
        clients = [Persistent(client.base_url, closing=bool(index % 2)) for index in range(48)]
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for each in clients:
                group.create_task(each.run())
            await asyncio.gather(*(each.answered.wait() for each in clients))
            process.send_signal(signal.SIGTERM)
        await clean_exit(process)
    assert [each.lost for each in clients] == [0] * len(clients)
    assert not (tmp_path / "socket").exists()


@dataclass
class Persistent:
    """A client that sends keystrokes as long as it can connect."""

    url: httpx.URL
    closing: bool  # sends Connection: close
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    lost: int = 0  # requests without an answer, on connections that were opened

    async def run(self) -> None:
        """Send keystrokes over one connection after another until none can be opened."""
        while True:
            try:
                opened = connections(self.url, 1)
                (connection,) = await opened.__aenter__()
            except (ConnectionRefusedError, FileNotFoundError):
                return
            try:
                await self._send(connection)
            except ConnectionError:
                self.lost += 1
            finally:
                await opened.__aexit__(None, None, None)

    async def _send(self, connection: Connection) -> None:
        headers = {"Connection": "close"} if self.closing else {}
        while (answer := await connection.post("/next-word", KEYSTROKE, **headers)).status in (200, 503):
            self.answered.set()
            if answer.headers.get("connection") == "close":
                return
        raise ConnectionError(f"status {answer.status}")


async def streamed(
    client: httpx.AsyncClient, content: bytes, started_streams: asyncio.Semaphore
) -> list[tuple[str, str]]:
    """Return the events of one caption stream; `started_streams` is released at the first event.

    Alternatives are searched after the last word, so the stream outlasts the words.
    """
    query = "/captions?beam=9&alternatives=9"
    headers = {"Accept": "text/event-stream", "Content-Type": "image/png"}
    events = list[tuple[str, str]]()
    async with client.stream("POST", query, content=content, headers=headers) as response:
        assert response.status_code == 200
        text = ""
        async for chunk in response.aiter_text():
            text += chunk
            if not events:
                started_streams.release()
            *whole, text = text.split("\n\n")
            for event in whole:
                fields = dict(line.split(": ", 1) for line in event.splitlines())
                events.append((fields["event"], fields["data"]))
    assert text == ""
    return events


async def test_streams_are_finished_during_shutdown() -> None:
    chance = np.random.default_rng(1)
    images = [png(chance.integers(0, 256, (224, 224, 3), np.uint8)) for _ in range(STREAMS)]
    started_streams = asyncio.Semaphore(0)
    with stoppable(STORE) as (url, process):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client, asyncio.TaskGroup() as group:
            streams = [group.create_task(streamed(client, image, started_streams)) for image in images]
            for _ in images:
                await started_streams.acquire()
            process.send_signal(signal.SIGTERM)
            assert not all(stream.done() for stream in streams)
        await clean_exit(process)
    for stream in streams:
        *words, (last, answer) = stream.result()
        assert {event for event, _ in words} == {"word"}
        assert last == "caption"
        streamed_words = [json.loads(data)["word"] for _, data in words]
        assert " ".join(streamed_words) == json.loads(answer)["results"][0]["caption"].replace("'s", " 's")
        assert len(json.loads(answer)["results"][0]["alternatives"]) == 9
