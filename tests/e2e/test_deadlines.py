"""Timeouts and disconnects at a real server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.clients import Connection, Metrics, connections, wait_until
from tests.e2e.conftest import serving

QUEUE, BATCH = 8, 2
SETTINGS = {"SEQSERVE_QUEUE_SIZE": str(QUEUE), "SEQSERVE_BATCH_SIZE": str(BATCH), "SEQSERVE_CACHE_MB": "0"}
SENTENCE: Final = "the company said profits rose "
LONG = {"text": SENTENCE * 20_000}  # a hundred chunks, more than a second
SOME = {"text": SENTENCE * 300}  # two
KEYSTROKE = {"text": "the company said"}

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def served(store: Path, count: int) -> AsyncIterator[tuple[Metrics, list[Connection]]]:
    """The metrics of a new server, and connections to it."""
    with serving(store, None, **SETTINGS) as (client, _):
        async with connections(client.base_url, count) as opened:
            yield Metrics(client.base_url), opened


def chunks(metrics: Metrics) -> float:
    """Return the number of chunks computed."""
    return metrics("batch_size_count", model="tiny")


async def start_long(metrics: Metrics, connection: Connection) -> None:
    """Send a LONG text and wait until some of its chunks are computed."""
    before = chunks(metrics)
    await connection.send("/perplexity", LONG)
    await wait_until(lambda: chunks(metrics) >= before + 3)


async def idle(metrics: Metrics, connection: Connection) -> bool:
    """Return True if no chunks are computed but those of the requests made here."""
    before = chunks(metrics)
    for _ in range(3):
        assert (await connection.post("/next-word", KEYSTROKE)).status == 200
    return chunks(metrics) == before + 3


async def test_a_request_times_out_in_the_queue(tiny_store: Path) -> None:
    async with served(tiny_store, BATCH + 1) as (metrics, (waiting, *busy)):
        for connection in busy:
            await start_long(metrics, connection)
        answer = await waiting.post("/perplexity", SOME, X_Request_Timeout="0.05")
        assert (answer.status, answer.json()["type"]) == (504, "/problems/deadline-exceeded")
        assert metrics("refusals_total", model="tiny", reason="deadline") == 1
        before = chunks(metrics)
        await wait_until(lambda: chunks(metrics) > before)  # the other requests continue


async def test_a_long_text_times_out_between_its_chunks(tiny_store: Path) -> None:
    async with served(tiny_store, 6) as (metrics, (other, *each)):
        for attempt, connection in enumerate(each, 1):  # a slow machine needs longer for the body and the first chunks
            before = metrics("refusals_total", model="tiny", reason="deadline")
            answer = await connection.post("/perplexity", LONG, X_Request_Timeout=str(2**attempt / 8))
            assert (answer.status, answer.json()["type"]) == (504, "/problems/deadline-exceeded")
            if chunks(metrics) > 1:
                break
        assert chunks(metrics) > 1
        assert metrics("refusals_total", model="tiny", reason="deadline") == before + 1
        assert await idle(metrics, other)


async def test_a_request_within_its_deadline_is_answered(tiny_store: Path) -> None:
    async with served(tiny_store, 1) as (_, (connection,)):
        assert (await connection.post("/perplexity", SOME, X_Request_Timeout="60")).status == 200


async def test_a_disconnect_stops_the_chunks_of_a_long_text(tiny_store: Path) -> None:
    async with served(tiny_store, 2) as (metrics, (connection, other)):
        await start_long(metrics, connection)
        connection.disconnect()
        await wait_until(lambda: metrics("refusals_total", model="tiny", reason="cancelled") == 1)
        assert metrics("queue_depth", model="tiny") == 0
        assert await idle(metrics, other)


async def test_disconnected_requests_free_the_queue(tiny_store: Path) -> None:
    async with served(tiny_store, 3 * QUEUE) as (metrics, (other, *disconnecting)):
        for connection in disconnecting:
            await connection.send("/perplexity", SOME)
        await wait_until(lambda: metrics("refusals_total", model="tiny", reason="overloaded") > 0)  # the queue is full
        for connection in disconnecting:
            connection.disconnect()
        await wait_until(lambda: metrics("queue_depth", model="tiny") == 0)
        assert metrics("refusals_total", model="tiny", reason="cancelled") > 0
        assert await idle(metrics, other)
