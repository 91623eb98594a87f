"""A real server that is asked for four times what it can do."""

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Final

import httpx
import pytest

from tests.e2e.callers import Answer, Caller, Figures, callers
from tests.e2e.conftest import serving

QUEUE, BATCH = 8, 2
CAN: Final = QUEUE + BATCH  # requests that it holds
ASKED: Final = 4 * CAN
BURSTS: Final = 6
DEADLINE_S: Final = 20.0
BOUNDS = {
    "SEQSERVE_QUEUE_SIZE": str(QUEUE),
    "SEQSERVE_BATCH_SIZE": str(BATCH),
    "SEQSERVE_REQUEST_TIMEOUT_S": str(DEADLINE_S),
    "SEQSERVE_CACHE_MB": "0",
}
WORK = {"text": "the company said profits rose " * 200}  # a chunk

pytestmark = pytest.mark.anyio


async def burst(asking: list[Caller]) -> list[Answer]:
    """All at once."""
    return await asyncio.gather(*(caller.ask("/perplexity", WORK) for caller in asking))


def resident(pid: int) -> int:
    """KiB in memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def told_apart(answers: list[Answer]) -> tuple[list[Answer], list[Answer]]:
    """Those with an answer, and those refused; there is nothing else."""
    accepted = [one for one in answers if one.status == 200]
    refused = [one for one in answers if one.status == 503]
    assert len(accepted) + len(refused) == len(answers)
    return accepted, refused


async def test_what_does_not_fit_is_refused_at_once_and_the_rest_is_answered_in_time(tiny_store: Path) -> None:
    with serving(tiny_store, None, **BOUNDS) as (client, process):
        async with callers(client.base_url, ASKED) as asking:
            await burst(asking)
            before = resident(process.pid)
            answers = [one for _ in range(BURSTS) for one in await burst(asking)]
            after = resident(process.pid)
        accepted, refused = told_apart(answers)
        figures = Figures(client.base_url)
        assert figures("refusals_total", model="tiny", reason="overloaded") >= len(refused)
        assert figures("refusals_total", reason="deadline") == 0
        assert figures("queue_depth", model="tiny") == 0
    assert len(accepted) >= BURSTS * QUEUE
    assert len(refused) >= BURSTS * (ASKED - 2 * CAN)
    for one in refused:
        assert one.json()["type"] == "/problems/overloaded"
        assert int(one.headers["retry-after"]) >= 1
    assert len({one.content for one in accepted}) == 1
    assert max(one.seconds for one in accepted) < DEADLINE_S  # so is their p99
    waited, turned_away = (median(one.seconds for one in some) for some in (accepted, refused))
    print(
        f"median of refusals {1000 * turned_away:.1f} ms, of answers {1000 * waited:.1f} ms; RSS {before}-{after} KiB"
    )
    assert turned_away < waited / 2
    assert after <= 1.05 * before


async def test_it_stays_ready_and_alive_while_it_refuses(tiny_store: Path) -> None:
    with serving(tiny_store, None, **BOUNDS) as (client, _):
        async with callers(client.base_url, ASKED) as asking, httpx.AsyncClient(base_url=client.base_url) as prober:
            overloaded = asyncio.ensure_future(burst(asking))
            probes = [(await prober.get(path)).status_code for path in ("/readyz", "/livez", "/metrics")]
            assert not overloaded.done()
            assert told_apart(await overloaded)[1]
    assert probes == [200, 200, 200]


async def test_when_load_falls_it_recovers_within_a_second(tiny_store: Path) -> None:
    with serving(tiny_store, None, **BOUNDS) as (client, _):
        async with callers(client.base_url, ASKED + 1) as (last, *asking):
            for _ in range(2):
                assert told_apart(await burst(asking))[1]
            fallen = time.monotonic()
            answer = await last.ask("/next-word", {"text": "the company said"})
            assert answer.status == 200
            assert time.monotonic() - fallen < 1
            assert told_apart(await burst(asking[:QUEUE]))[1] == []
