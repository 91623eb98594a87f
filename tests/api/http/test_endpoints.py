"""Declarations of endpoints."""

import asyncio
import hashlib
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import FastAPI, Query
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from app.api.http.bodies import JsonBody
from app.api.http.endpoints import Deadline, Endpoint, required_scopes
from app.api.http.fields import RequestModel
from tests.api.conftest import FakeServed, connect, service

pytestmark = pytest.mark.anyio

KEY = {"X-API-Key": "secret"}


class Echo(RequestModel):
    text: str
    count: int = 1


async def echo(body: Echo, deadline: Deadline, suffix: Annotated[str, Query(max_length=3)] = "") -> Response:
    assert deadline
    return PlainTextResponse(body.text * body.count + suffix)


async def two() -> str:
    return "two"


def with_echo(served: FakeServed, **settings: Any) -> FastAPI:
    app = service(served, **settings)
    body = JsonBody(64, cost=lambda document: len(str(document["text"])))
    app.routes.append(Endpoint("/echo", echo, scope="predict", body=body))
    app.routes.append(Endpoint("/undeclared", echo, body=body))
    app.routes.append(Route("/plain", lambda _: PlainTextResponse("")))
    return app


def test_a_route_that_declares_no_scope_needs_the_admin_scope() -> None:
    assert required_scopes([Route("/new", asyncio.sleep), Mount("/below", routes=[])]) == {
        "/new": {"GET": "admin", "HEAD": "admin"},
        "/below/{path:path}": {"*": "admin"},
    }


async def test_two_methods_of_one_path_have_a_scope_each(served: FakeServed, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"reader predict - sha256:{hashlib.sha256(b'secret').hexdigest()}")
    app = service(served, api_keys_file=keys)
    app.routes.append(Endpoint("/{name}/two", two, scope=None))
    app.routes.append(Endpoint("/{name}/two", echo, scope="predict", body=JsonBody(64)))
    app.routes.append(Endpoint("/fixed/two", two))
    async with connect(app) as client:
        statuses = [
            (await client.request(method, path, json={"text": "a"}, headers=headers)).status_code
            for method, path in (("GET", "/a/two"), ("POST", "/a/two"), ("PUT", "/a/two"), ("GET", "/fixed/two"))
            for headers in ({}, KEY)
        ]
        allowed = (await client.put("/a/two")).headers["allow"]
    assert statuses == [200, 200, 401, 200, 405, 405, 401, 403]
    assert allowed == "GET, POST"


async def test_a_declared_body_is_limited_charged_and_validated(served: FakeServed) -> None:
    async with connect(with_echo(served, rate_limit="10/minute")) as client:
        answer = await client.post("/echo?suffix=c", json={"text": "ab", "count": 2})
        large = await client.post("/echo", json={"text": "a" * 99})
        wrong = await client.post("/echo?suffix=long", json={"text": 1}, headers={"X-Request-Timeout": "soon"})
    assert (answer.text, answer.headers["ratelimit"].partition(";t=")[0]) == ("ababc", '"default";r=7')
    assert large.status_code == 413
    assert [error["field"] for error in wrong.json()["errors"]] == ["X-Request-Timeout", "suffix", "text"]


async def test_an_endpoint_is_documented_from_its_declaration(served: FakeServed, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"reader predict - sha256:{hashlib.sha256(b'secret').hexdigest()}")
    async with connect(with_echo(served, api_keys_file=keys)) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        statuses = [
            (await client.request(method, path, json={"text": "a"}, headers=headers)).status_code
            for method, path in (("POST", "/echo"), ("POST", "/undeclared"), ("GET", "/plain"))
            for headers in ({}, KEY)
        ]
    assert paths["/echo"]["post"]["security"]
    assert "429" in paths["/echo"]["post"]["responses"]
    assert statuses == [401, 200, 401, 403, 401, 403]
