"""A real server under four times its capacity."""

import asyncio
import time
from pathlib import Path
from statistics import median
from typing import Final

import httpx
import pytest

from tests.e2e.clients import Connection, Metrics, Response, connections
from tests.e2e.conftest import serving

QUEUE, BATCH = 8, 2
CAPACITY: Final = QUEUE + BATCH  # requests
OFFERED: Final = 4 * CAPACITY
BURSTS: Final = 6
DEADLINE_S: Final = 20.0
SETTINGS = {
    "SEQSERVE_QUEUE_SIZE": str(QUEUE),
    "SEQSERVE_BATCH_SIZE": str(BATCH),
    "SEQSERVE_REQUEST_TIMEOUT_S": str(DEADLINE_S),
    "SEQSERVE_CACHE_MB": "0",
}
WORK = {"text": "the company said profits rose " * 200}  # a chunk

pytestmark = [pytest.mark.anyio, pytest.mark.serial]


async def burst(opened: list[Connection]) -> list[Response]:
    """Send one request over each connection at once."""
    return await asyncio.gather(*(connection.post("/perplexity", WORK) for connection in opened))


def resident(pid: int) -> int:
    """Return the resident memory in KiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def accepted_and_rejected(answers: list[Response]) -> tuple[list[Response], list[Response]]:
    """Split responses by status 200 and 503; there is no other."""
    accepted = [one for one in answers if one.status == 200]
    rejected = [one for one in answers if one.status == 503]
    assert len(accepted) + len(rejected) == len(answers)
    return accepted, rejected


async def test_excess_requests_are_rejected_at_once_and_the_rest_answered_in_time(tiny_store: Path) -> None:
    with serving(tiny_store, None, **SETTINGS) as (client, process):
        async with connections(client.base_url, OFFERED) as opened:
            await burst(opened)
            before = resident(process.pid)
            answers = [one for _ in range(BURSTS) for one in await burst(opened)]
            after = resident(process.pid)
        accepted, rejected = accepted_and_rejected(answers)
        metrics = Metrics(client.base_url)
        assert metrics("refusals_total", model="tiny", reason="overloaded") >= len(rejected)
        assert metrics("refusals_total", reason="deadline") == 0
        assert metrics("queue_depth", model="tiny") == 0
    assert len(accepted) >= BURSTS * QUEUE
    assert len(rejected) >= BURSTS * (OFFERED - 2 * CAPACITY)
    for one in rejected:
        assert one.json()["type"] == "/problems/overloaded"
        assert int(one.headers["retry-after"]) >= 1
    assert len({one.content for one in accepted}) == 1
    assert max(one.seconds for one in accepted) < DEADLINE_S  # and so is p99
    accepted_s, rejected_s = (median(one.seconds for one in some) for some in (accepted, rejected))
    print(
        f"medians: rejected {1000 * rejected_s:.1f} ms, answered {1000 * accepted_s:.1f} ms; RSS {before}-{after} KiB"
    )
    assert rejected_s < accepted_s / 2
    assert after <= 1.05 * before


async def test_the_server_stays_ready_and_live_under_overload(tiny_store: Path) -> None:
    with serving(tiny_store, None, **SETTINGS) as (client, _):
        async with (
            connections(client.base_url, OFFERED) as opened,
            httpx.AsyncClient(base_url=client.base_url) as prober,
        ):
            overloaded = asyncio.ensure_future(burst(opened))
            probes = [(await prober.get(path)).status_code for path in ("/readyz", "/livez", "/metrics")]
            assert not overloaded.done()
            assert accepted_and_rejected(await overloaded)[1]
    assert probes == [200, 200, 200]


async def test_the_server_recovers_within_a_second_after_overload(tiny_store: Path) -> None:
    with serving(tiny_store, None, **SETTINGS) as (client, _):
        async with connections(client.base_url, OFFERED + 1) as (last, *opened):
            for _ in range(2):
                assert accepted_and_rejected(await burst(opened))[1]
            load_end = time.monotonic()
            answer = await last.post("/next-word", {"text": "the company said"})
            assert answer.status == 200
            assert time.monotonic() - load_end < 1
            assert accepted_and_rejected(await burst(opened[:QUEUE]))[1] == []
