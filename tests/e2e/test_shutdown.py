"""A real server that is told to stop while it is asked."""

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
from tests.e2e.callers import Answer, Caller, Figures, ask_anew, callers, until
from tests.e2e.conftest import serving

STORE = Path(__file__).parents[2] / "models_store"
GRACE_S: Final = 30
BATCH: Final = 2
ACCEPTED: Final = 16
WORK = {"text": "the company said profits rose " * 400}  # two chunks
KEYSTROKE = {"text": "the company said"}
STREAMS: Final = 8

pytestmark = pytest.mark.anyio


@contextmanager
def stoppable(store: Path) -> Iterator[tuple[httpx.URL, subprocess.Popen[str]]]:
    bounds = {"SEQSERVE_BATCH_SIZE": str(BATCH), "SEQSERVE_GRACE_S": str(GRACE_S), "SEQSERVE_CACHE_MB": "0"}
    with serving(store, None, **bounds) as (client, process):
        yield client.base_url, process


async def ended(process: subprocess.Popen[str]) -> float:
    """Wait for the process to end in peace; how long that took."""
    began = time.monotonic()
    assert await asyncio.to_thread(process.wait, 2 * GRACE_S) == 0
    return time.monotonic() - began


async def accepted(url: httpx.URL, asking: list[Caller]) -> list[asyncio.Task[Answer]]:
    """Everybody asks for WORK, and all of it is in the queue."""
    for caller in asking:
        await caller.send("/perplexity", WORK)
    answers = [asyncio.create_task(caller.answer()) for caller in asking]
    figures = Figures(url)
    await until(lambda: figures("queue_depth", model="tiny") >= len(asking) - BATCH)
    return answers


async def not_ready(url: httpx.URL) -> httpx.Response:
    """What the probe is told once readiness has fallen."""
    async with asyncio.timeout(GRACE_S):
        while (response := await asyncio.to_thread(httpx.get, url.join("/readyz"))).status_code == 200:
            pass
    return response


async def test_readiness_falls_first_and_accepted_work_is_finished(tiny_store: Path) -> None:
    with stoppable(tiny_store) as (url, process):
        async with callers(url, ACCEPTED) as asking:
            answers = await accepted(url, asking)
            process.send_signal(signal.SIGTERM)
            ready = await not_ready(url)
            late = await ask_anew(url, "/perplexity", WORK)
            assert not all(answer.done() for answer in answers)
            found = await asyncio.gather(*answers)
        assert await ended(process) < GRACE_S
        with pytest.raises(ConnectionRefusedError):
            await ask_anew(url, "/perplexity", WORK)
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
    """Somebody who types on until told that it is over."""

    url: httpx.URL
    outcomes: Counter[str] = field(default_factory=Counter)
    lost: list[float] = field(default_factory=list)  # when they were sent

    async def type(self) -> None:
        """Over one connection after another."""
        while not self.outcomes["refused"]:
            try:
                async with callers(self.url, 1) as (caller,):
                    await self._type(caller)
            except ConnectionRefusedError:
                self.outcomes["refused"] += 1
            except ConnectionResetError:  # before anything was sent: nobody accepted it any more
                self.outcomes["closed"] += 1

    async def _type(self, caller: Caller) -> None:
        while True:
            try:
                answer = await caller.ask("/next-word", KEYSTROKE)
            except ConnectionError:  # closed without an answer
                self.outcomes["closed"] += 1
                self.lost.append(caller.sent)
                return
            self.outcomes[str(answer.status)] += 1
            if answer.headers.get("connection") == "close":
                return


async def test_whoever_asks_on_is_answered_or_told_apart(tiny_store: Path) -> None:
    with stoppable(tiny_store) as (url, process):
        typists = [Typist(url) for _ in range(4)]
        async with callers(url, ACCEPTED) as asking, asyncio.TaskGroup() as group:
            for typist in typists:
                group.create_task(typist.type())
            answers = await accepted(url, asking)
            told = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert [answer.status for answer in await asyncio.gather(*answers)] == [200] * ACCEPTED
        await ended(process)
    outcomes = sum((typist.outcomes for typist in typists), Counter[str]())
    assert set(outcomes) <= {"200", "503", "closed", "refused"}
    assert outcomes["200"]
    assert outcomes["503"]
    assert outcomes["refused"] == len(typists)
    assert all(sent > told for typist in typists for sent in typist.lost)


async def streamed(client: httpx.AsyncClient, content: bytes, begun: asyncio.Semaphore) -> list[tuple[str, str]]:
    """The events of one photograph's caption, of a stream that ends as it should; `begun` is released with the first.

    Its alternatives are searched for once all words are told, so that the stream is not over with the words.
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
                begun.release()
            *whole, text = text.split("\n\n")
            for event in whole:
                fields = dict(line.split(": ", 1) for line in event.splitlines())
                events.append((fields["event"], fields["data"]))
    assert text == ""
    return events


async def test_streams_of_words_are_ended_properly() -> None:
    chance = np.random.default_rng(1)
    pictures = [png(chance.integers(0, 256, (224, 224, 3), np.uint8)) for _ in range(STREAMS)]
    begun = asyncio.Semaphore(0)
    with stoppable(STORE) as (url, process):
        async with httpx.AsyncClient(base_url=url, timeout=60) as client, asyncio.TaskGroup() as group:
            streams = [group.create_task(streamed(client, picture, begun)) for picture in pictures]
            for _ in pictures:
                await begun.acquire()
            process.send_signal(signal.SIGTERM)
            assert not all(stream.done() for stream in streams)
        await ended(process)
    for stream in streams:
        *words, (last, answer) = stream.result()
        assert {event for event, _ in words} == {"word"}
        assert last == "caption"
        told = [json.loads(data)["word"] for _, data in words]
        assert " ".join(told) == json.loads(answer)["results"][0]["caption"].replace("'s", " 's")
        assert len(json.loads(answer)["results"][0]["alternatives"]) == 9
