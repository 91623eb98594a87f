"""Middleware around every request."""

import asyncio
import re
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import FakeServed, connect, service

pytestmark = pytest.mark.anyio

REQUESTS = [
    ("GET", "/livez", 200),
    ("GET", "/readyz", 200),
    ("GET", "/metrics", 200),
    ("GET", "/models", 200),
    ("GET", "/models/ptb", 200),
    ("GET", "/models/none", 404),
    ("GET", "/docs", 200),
    ("GET", "/openapi.json", 200),
    ("GET", "/", 200),
    ("GET", "/nothing", 404),
    ("GET", "/next-word/", 404),
    ("GET", "/next-word", 405),
    ("DELETE", "/models", 405),
    ("POST", "/next-word", 415),
]


@pytest.mark.parametrize(("method", "path", "status"), REQUESTS)
async def test_every_response_has_the_request_id_of_the_client(
    shared: FastAPI, method: str, path: str, status: int
) -> None:
    async with connect(shared) as client:
        response = await client.request(method, path, headers={"X-Request-Id": "mine/42"})
    assert (response.status_code, response.headers["x-request-id"]) == (status, "mine/42")
    if status >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["status"] == status


async def test_a_request_cancelled_by_the_shutdown_gets_a_503(served: FakeServed) -> None:
    async def cut_off(payload: Any, deadline: float | None) -> Any:
        raise asyncio.CancelledError

    served.answering = cut_off
    async with connect(service(served)) as client:
        response = await client.post("/next-word", json={"text": "a"})
    assert (response.status_code, response.json()["type"]) == (503, "/problems/not-ready")
    assert response.headers["retry-after"]


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"two words", "\u00e9".encode("latin-1"), b"tab\there", None])
async def test_an_invalid_request_id_is_replaced(shared: FastAPI, sent: bytes | None) -> None:
    headers = [] if sent is None else [(b"X-Request-Id", sent)]
    async with connect(shared) as client:
        first, second = [(await client.get("/livez", headers=headers)).headers["x-request-id"] for _ in "ab"]
    assert len(first) == 32
    assert first != second


async def test_request_ids_are_unique_within_and_across_processes(served: FakeServed) -> None:
    named = []
    for app in (service(served), service(served)):  # as two processes, each with its own prefix
        async with connect(app) as client:
            named += [(await client.get("/livez")).headers["x-request-id"] for _ in range(20)]
    assert len(set(named)) == 40
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in named)


@pytest.mark.parametrize("sent", ["x" * 128, "!", "~"])
async def test_valid_request_ids_are_kept(shared: FastAPI, sent: str) -> None:
    async with connect(shared) as client:
        assert (await client.get("/livez", headers={"X-Request-Id": sent})).headers["x-request-id"] == sent


async def test_requests_are_counted_under_their_routes_template(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        for method, path, _ in REQUESTS:
            await client.request(method, path)
        await client.request("BREW", "/coffee")
        response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert all(name.startswith("seqserve_") for name in families)
    counted = {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for sample in families["seqserve_requests"].samples
        if sample.name == "seqserve_requests_total"
    }
    assert counted == {
        ("GET", "/livez", "200"): 1,
        ("GET", "/readyz", "200"): 1,
        ("GET", "/metrics", "200"): 1,
        ("GET", "/models", "200"): 1,
        ("GET", "/models/{model}", "200"): 1,
        ("GET", "/models/{model}", "404"): 1,
        ("GET", "/docs", "200"): 1,
        ("GET", "/openapi.json", "200"): 1,
        ("GET", "/", "200"): 1,
        ("GET", "unknown", "404"): 2,
        ("GET", "/next-word", "405"): 1,
        ("DELETE", "/models", "405"): 1,
        ("POST", "/next-word", "415"): 1,
        ("other", "unknown", "404"): 1,
    }
