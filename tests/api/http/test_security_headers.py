"""Security headers and CORS."""

import hashlib
import re
from base64 import b64encode

import pytest
from fastapi import FastAPI

from tests.api.conftest import FakeServed, connect, service
from tests.api.http.test_middleware import REQUESTS

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("method", "path"), [row[:2] for row in REQUESTS])
async def test_every_response_has_security_headers(shared: FastAPI, method: str, path: str) -> None:
    async with connect(shared) as client:
        headers = (await client.request(method, path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert len(headers.get_list("content-security-policy")) == 1
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


async def test_an_answer_in_json_may_do_nothing_in_a_browser(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        response = await client.post("/next-word", json={"text": "a"})
    assert response.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


async def test_the_documentation_allows_its_own_scripts_by_their_hash(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        response = await client.get("/docs")
    (script,) = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    policy = response.headers["content-security-policy"]
    assert f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "script-src 'self' 'sha256-" in policy
    assert "unsafe-eval" not in policy


@pytest.mark.parametrize("path", ["/", "/livez", "/models", "/models/ptb", "/docs", "/openapi.json", "/metrics"])
async def test_head_returns_the_headers_of_get_without_the_content(shared: FastAPI, path: str) -> None:
    async with connect(shared) as client:
        got, head = await client.get(path), await client.head(path)
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    if path != "/metrics":  # which counts the first of the two
        assert head.headers["content-length"] == got.headers["content-length"] == str(len(got.content))


async def test_head_of_a_route_with_a_body_is_not_allowed_and_is_counted_as_head(served: FakeServed) -> None:
    async with connect(service(served)) as client:
        response = await client.head("/next-word")
        metrics = (await client.get("/metrics")).text
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert 'seqserve_requests_total{method="HEAD",route="/next-word",status="405"} 1.0' in metrics


async def test_a_page_of_a_named_origin_may_ask_with_a_key_and_no_other(served: FakeServed) -> None:
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    async with connect(service(served, cors_origins="https://a.example, https://b.example")) as client:
        allowed = await client.options("/next-word", headers={"Origin": "https://b.example", **ask})
        refused = await client.options("/next-word", headers={"Origin": "https://c.example", **ask})
        answer = await client.post("/next-word", json={"text": "a"}, headers={"Origin": "https://a.example"})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://b.example")
    assert (refused.status_code, refused.headers.get("access-control-allow-origin")) == (400, None)
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in answer.headers
    assert allowed.headers["x-content-type-options"] == "nosniff"
