"""Rate limits and costs."""

import logging
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.datastructures import QueryParams

from app.api.http import costs, rate_limits
from app.api.http.rate_limits import Charge, Memory, Quota, RateLimiter
from app.errors import RateLimited, SettingsError
from tests.api.conftest import Clock, FakeServed, connect, service
from tests.api.http.test_authorization import bearer, from_afar, line

pytestmark = pytest.mark.anyio

ASK = {"text": "a"}


class Watching:
    """An Observer that counts."""

    def __init__(self) -> None:
        self.limited = self.errors = 0

    def count_rate_limited(self) -> None:
        self.limited += 1

    def count_rate_storage_error(self) -> None:
        self.errors += 1


def counting(units: int, window_s: int, clock: Clock) -> RateLimiter:
    return RateLimiter(Quota(units, window_s), Memory(now=clock), Watching(), now=clock)


async def test_a_quota_is_reset_after_the_reported_time() -> None:
    clock = Clock()
    counted = counting(10, 60, clock)
    assert (await counted.charge("a", 4)).remaining == 6
    assert (await counted.charge("a", 6)).remaining == 0
    clock.time += 20
    with pytest.raises(RateLimited) as reported:
        await counted.charge("a", 1)
    assert 40 <= reported.value.retry_after <= 42
    clock.time += reported.value.retry_after
    assert (await counted.charge("a", 4)).remaining == 6


async def test_clients_are_counted_separately() -> None:
    counted = counting(10, 60, Clock())
    await counted.charge("a", 10)
    assert (await counted.charge("b", 1)).remaining == 9


async def test_a_cost_beyond_the_quota_takes_all_of_it() -> None:
    rate_limits = counting(10, 60, Clock())
    charge = Charge(rate_limits, "a")
    await charge.add(1)
    await charge.add(1000)
    assert (b"ratelimit", b'"default";r=0;t=61') in charge.headers()
    with pytest.raises(RateLimited):
        await rate_limits.charge("a", 1)


async def test_a_rejected_request_costs_nothing() -> None:
    counted = counting(10, 60, Clock())
    await counted.charge("a", 7)
    for _ in range(3):
        with pytest.raises(RateLimited, match="found 11"):
            await counted.charge("a", 4)
    assert (await counted.charge("a", 3)).remaining == 0


async def test_a_full_memory_evicts_the_least_recently_active_client() -> None:
    memory = Memory(max_clients=2, now=Clock())
    for name in "abac":
        await memory.incr(name, 60)
    assert [await memory.incr(name, 60) for name in "ac"] == [3, 2]
    assert await memory.incr("b", 60) == 1


class Down:
    """A storage that is unreachable until a test sets `up`."""

    def __init__(self, clock: Clock) -> None:
        self.up = False
        self.calls = 0
        self.memory = Memory(now=clock)

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        self.calls += 1
        if not self.up:
            raise ConnectionError("Error 111")
        return await self.memory.incr(key, expiry, amount)

    async def get_expiry(self, key: str) -> float:
        return await self.memory.get_expiry(key)


async def test_while_the_storage_is_down_the_process_counts_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock, watching = Clock(), Watching()
    storage = Down(clock)
    counted = RateLimiter(Quota(3, 60), storage, watching, failures=(OSError,), now=clock)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await counted.charge("a", 1)
        with pytest.raises(RateLimited):
            await counted.charge("a", 1)
        assert (storage.calls, watching.errors) == (1, 1), "it is not retried at once"
        storage.up = True
        clock.time += rate_limits.RETRY_S
        assert (await counted.charge("a", 1)).remaining == 2
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


async def test_other_errors_of_the_storage_are_raised() -> None:
    counted = RateLimiter(Quota(3, 60), Down(Clock()), Watching(), failures=(KeyError,), now=Clock())
    with pytest.raises(ConnectionError):
        await counted.charge("a", 1)


@pytest.mark.parametrize(
    ("document", "cost"),
    [
        ({"text": "a" * 99}, 0),
        ({"text": "a" * 100}, 1),
        ({"texts": ["a" * 150, "b" * 150]}, 3),
        ({"text": "", "top_k": 5, "complete": True}, 0),
        ({"text": ["a" * 60, 7, ["b" * 500]], "other": "c" * 60}, 1),
        ([1, 2], 0),
        ("a" * 1000, 0),
    ],
)
def test_a_text_costs_a_unit_per_hundred_characters(document: Any, cost: int) -> None:
    assert costs.characters(document) // costs.CHARACTERS == cost


async def test_a_response_reports_the_limit_status(served: FakeServed) -> None:
    async with connect(service(served, rate_limit="10/minute")) as client:
        short = await client.post("/next-word", json=ASK)
        long = await client.post("/perplexity", json={"text": "a" * 250})
        listed = await client.get("/models")
        free = await client.get("/livez")
    assert short.headers["ratelimit-policy"] == '"default";q=10;w=60;qu="cost"'
    assert short.headers["ratelimit"].startswith('"default";r=9;t=')
    assert long.headers["ratelimit"].startswith('"default";r=6;t=')
    assert listed.headers["ratelimit"].startswith('"default";r=5;t=')
    assert "ratelimit" not in free.headers


async def test_a_client_over_its_quota_gets_retry_after_and_no_model_runs(served: FakeServed) -> None:
    asked = []
    plausible = served.answering

    async def answering(payload: Any, deadline: float | None) -> Any:
        asked.append(payload)
        return await plausible(payload, deadline)

    served.answering = answering
    async with connect(service(served, rate_limit="3/hour")) as client:
        statuses = [(await client.post("/next-word", json=ASK)).status_code for _ in range(4)]
        response = await client.post("/next-word", json=ASK)
        metrics = (await client.get("/metrics")).text
    assert (statuses, len(asked)) == ([200, 200, 200, 429], 3)
    assert (response.headers["content-type"], response.json()["type"]) == (
        "application/problem+json",
        "/problems/rate-limited",
    )
    retry_s = int(response.headers["retry-after"])
    assert 3590 <= retry_s <= 3601
    assert response.headers["ratelimit"] == f'"default";r=0;t={retry_s}'
    families = {family.name: family.samples for family in text_string_to_metric_families(metrics)}
    assert families["seqserve_rate_limited"][0].value == 2


async def test_a_body_that_costs_too_much_is_rejected_before_the_model(served: FakeServed) -> None:
    async with connect(service(served, rate_limit="8/hour")) as client:
        assert (await client.post("/perplexity", json={"text": "a" * 500})).status_code == 200
        refused = await client.post("/perplexity", json={"text": "a" * 500})
    assert refused.status_code == 429
    assert "expected at most 8 units of cost in 3600 s" in refused.json()["detail"]


async def test_each_image_costs_units_before_it_is_answered() -> None:
    parts = [("image", (f"{place}.png", b"x")) for place in range(2)]
    async with connect(service(rate_limit="100/hour")) as client:
        response = await client.post("/digits", files=parts)
    assert response.headers["ratelimit"].startswith(f'"default";r={100 - 1 - 2 * costs.IMAGE};')


async def test_an_invalid_body_costs_the_base_cost(served: FakeServed) -> None:
    async with connect(service(served, rate_limit="2/hour")) as client:
        statuses = [(await client.post("/next-word", content=b"{")).status_code for _ in range(3)]
    assert statuses == [415, 415, 429]


async def test_each_key_has_its_own_quota(served: FakeServed, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n".join([line("reader", "predict"), line("operator", "admin")]))
    async with connect(service(served, rate_limit="1/hour", api_keys_file=file)) as client:
        reported = [
            (await client.post("/next-word", json=ASK, headers=bearer(name))).status_code
            for name in ("reader", "reader", "operator")
        ]
    assert reported == [200, 429, 200]


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ("10.0.0.1", "10.0.0.1", 429),
        ("10.0.0.1", "10.0.0.2", 200),
        ("2001:db8::1", "2001:db8::ffff:1", 429),
        ("2001:db8::1", "2001:db8:0:1::1", 200),
        ("nonsense", "nonsense", 429),
    ],
)
async def test_without_keys_an_address_or_ipv6_network_has_a_quota(
    served: FakeServed, first: str, second: str, status: int
) -> None:
    app = service(served, rate_limit="1/hour")
    async with app.router.lifespan_context(app) as state:
        async with from_afar(app, state, first) as client:
            assert (await client.post("/next-word", json=ASK)).status_code == 200
        async with from_afar(app, state, second) as client:
            assert (await client.post("/next-word", json=ASK)).status_code == status


@pytest.mark.parametrize(
    ("limit", "storage", "reported"),
    [
        ("fast", "memory://", "SEQSERVE_RATE_LIMIT: expected one rate like 600/minute, found 'fast'"),
        ("0/minute", "memory://", "SEQSERVE_RATE_LIMIT: expected one rate like 600/minute, found '0/minute'"),
        ("600/minute;10/second", "memory://", "SEQSERVE_RATE_LIMIT: expected one rate like 600/minute"),
        ("10/minute", "memcached://host", "SEQSERVE_RATE_STORAGE: expected memory, redis, rediss"),
        ("10/minute", "secret", "found ''"),
    ],
)
async def test_an_invalid_rate_limit_is_rejected(served: FakeServed, limit: str, storage: str, reported: str) -> None:
    with pytest.raises(SettingsError) as error:
        service(served, rate_limit=limit, rate_storage=storage)
    assert reported in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("document", "cost"),
    [
        ({"text": "a" * 99}, 0),
        ({"text": "a" * 100, "top_k": 50}, 1),
        ({"text": "", "words": 2}, 1),
        ({"text": "", "words": 5}, 4),
        ({"text": "", "words": 5, "top_k": 50}, 20),
        ({"text": "", "words": 1, "top_k": 50}, 0),
        ({"text": "", "words": 10**9, "top_k": "many"}, 0),
        ({"text": "a" * 1000, "alternatives": 10}, 10),
        ({"text": "a" * 1000, "alternatives": 10, "per_token": True}, 12),
        ({"texts": ["a" * 500, "b" * 500], "alternatives": 4, "per_token": True}, 11),
        ({"text": "", "words": 10**400}, 0),
        ([1, 2], 0),
    ],
)
def test_beam_steps_and_alternatives_cost_units(document: Any, cost: int) -> None:
    assert costs.of_text(document) == cost


@pytest.mark.parametrize(
    ("images", "query", "cost"),
    [
        (1, "", 4),
        (8, "", 32),
        (1, "beam=10", 5),
        (1, "alternatives=2", 4),
        (1, "alternatives=9", 6),
        (2, "beam=10&alternatives=9", 10),
        (1, "beam=10.0", 5),
        (1, "beam=1000", 4),
        (1, "beam=nan", 4),
        (1, "beam=wide", 4),
    ],
)
def test_a_wider_caption_search_costs_more(images: int, query: str, cost: int) -> None:
    assert costs.of_images(images, QueryParams(query)) == cost


async def test_a_search_that_costs_too_much_is_rejected_before_the_model(served: FakeServed) -> None:
    async with connect(service(served, rate_limit="20/hour")) as client:
        plain = await client.post("/next-word", json={"text": "a", "top_k": 50})
        wide = await client.post("/next-word", json={"text": "a", "top_k": 50, "words": 5})
    assert plain.headers["ratelimit"].startswith('"default";r=19;')
    assert wide.status_code == 429
