"""Requests that are given up at a real server: by their deadline, or because their caller left."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.callers import Caller, Figures, callers, until
from tests.e2e.conftest import serving

QUEUE, BATCH = 8, 2
BOUNDS = {"SEQSERVE_QUEUE_SIZE": str(QUEUE), "SEQSERVE_BATCH_SIZE": str(BATCH), "SEQSERVE_CACHE_MB": "0"}
SENTENCE: Final = "the company said profits rose "
LONG = {"text": SENTENCE * 20_000}  # a hundred chunks, more than a second
SOME = {"text": SENTENCE * 300}  # two
KEYSTROKE = {"text": "the company said"}

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def served(store: Path, count: int) -> AsyncIterator[tuple[Figures, list[Caller]]]:
    """A server's figures, and so many callers of it."""
    with serving(store, None, **BOUNDS) as (client, _):
        async with callers(client.base_url, count) as asking:
            yield Figures(client.base_url), asking


def chunks(figures: Figures) -> float:
    """How many have been read."""
    return figures("batch_size_count", model="tiny")


async def reading(figures: Figures, caller: Caller) -> None:
    """A LONG text is under way: some chunks of it are read."""
    before = chunks(figures)
    await caller.send("/perplexity", LONG)
    await until(lambda: chunks(figures) >= before + 3)


async def idle(figures: Figures, caller: Caller) -> bool:
    """Whether no chunk is read but those of what is asked now."""
    before = chunks(figures)
    for _ in range(3):
        assert (await caller.ask("/next-word", KEYSTROKE)).status == 200
    return chunks(figures) == before + 3


async def test_a_deadline_is_kept_to_in_the_queue(tiny_store: Path) -> None:
    async with served(tiny_store, BATCH + 1) as (figures, (waiting, *busy)):
        for caller in busy:
            await reading(figures, caller)
        answer = await waiting.ask("/perplexity", SOME, X_Request_Timeout="0.05")
        assert (answer.status, answer.json()["type"]) == (504, "/problems/deadline-exceeded")
        assert figures("refusals_total", model="tiny", reason="deadline") == 1
        before = chunks(figures)
        await until(lambda: chunks(figures) > before)  # the others' go on


async def test_a_deadline_is_kept_to_between_the_chunks_of_a_long_text(tiny_store: Path) -> None:
    async with served(tiny_store, 2) as (figures, (caller, other)):
        for asked in range(1, 6):  # a slow machine needs longer before it reads
            answer = await caller.ask("/perplexity", LONG, X_Request_Timeout=str(2**asked / 8))
            assert (answer.status, answer.json()["type"]) == (504, "/problems/deadline-exceeded")
            assert figures("refusals_total", model="tiny", reason="deadline") == asked
            if chunks(figures) > 1:
                break
        assert chunks(figures) > 1
        assert await idle(figures, other)


async def test_who_has_time_is_answered(tiny_store: Path) -> None:
    async with served(tiny_store, 1) as (_, (caller,)):
        assert (await caller.ask("/perplexity", SOME, X_Request_Timeout="60")).status == 200


async def test_the_chunks_of_a_caller_who_leaves_stop(tiny_store: Path) -> None:
    async with served(tiny_store, 2) as (figures, (caller, other)):
        await reading(figures, caller)
        caller.leave()
        await until(lambda: figures("refusals_total", model="tiny", reason="cancelled") == 1)
        assert figures("queue_depth", model="tiny") == 0
        assert await idle(figures, other)


async def test_callers_who_leave_give_their_places_to_others(tiny_store: Path) -> None:
    async with served(tiny_store, 3 * QUEUE) as (figures, (other, *leaving)):
        for caller in leaving:
            await caller.send("/perplexity", SOME)
        await until(lambda: figures("refusals_total", model="tiny", reason="overloaded") > 0)  # the queue is full
        for caller in leaving:
            caller.leave()
        await until(lambda: figures("queue_depth", model="tiny") == 0)
        assert figures("refusals_total", model="tiny", reason="cancelled") > 0
        assert await idle(figures, other)
