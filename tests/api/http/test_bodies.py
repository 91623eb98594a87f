"""Request bodies: type, size, arrival and decoding."""

import asyncio
import errno
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.datastructures import UploadFile
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.native.language import NEXT_WORD_BYTES
from tests.api.conftest import FakeServed, connect, listening, plausible, service

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=UTF-8", 200),
        ("application/json; charset=utf8", 200),
        ("application/vnd.api+json", 200),
        ("application/json; charset=utf-16", 415),
        ("text/json", 415),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonp", 415),
        ("json", 415),
        ("", 415),
        (None, 415),
    ],
)
@pytest.mark.parametrize("path", ["/next-word", "/perplexity"])
@pytest.mark.anyio
async def test_a_json_body_needs_its_content_type(shared: FastAPI, path: str, sent: str | None, status: int) -> None:
    headers = {} if sent is None else {"Content-Type": sent}
    async with connect(shared) as client:
        response = await client.post(path, content=b'{"text": "a"}', headers=headers)
    assert response.status_code == status
    assert status == 200 or "expected application/json in UTF-8" in response.json()["detail"]


@pytest.mark.parametrize(("path", "media"), [("/next-word", "application/json"), ("/digits", "multipart/form-data")])
@pytest.mark.anyio
async def test_a_content_type_of_many_parameters_is_not_read(shared: FastAPI, path: str, media: str) -> None:
    sent = f'{media}; a="{";" * 30_000}'  # takes half a second
    async with connect(shared) as client:
        response = await client.post(path, content=b"{}", headers={"Content-Type": sent})
    assert response.status_code == 415
    assert response.json()["detail"] == f"Content-Type: expected at most 1024 bytes, found {len(sent)}"


@pytest.mark.parametrize("query", ["", "?unknown=1"])
@pytest.mark.anyio
async def test_endpoints_with_a_fixed_path_bypass_the_router(served: FakeServed, query: str) -> None:
    app, routed = service(served), list[str]()
    by_router = app.router.app

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            routed.append(scope["path"])
        await by_router(scope, receive, send)

    app.router.middleware_stack = watched
    async with connect(app) as client:
        response = await client.post(f"/next-word{query}", content=b'{"text": "a"}', headers=JSON)
    assert response.status_code == 200
    assert routed == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"text": "a"',
        b'{"text": "a"} {}',
        b"{'text': 'a'}",
        b'{"text": "\xff"}',
        '{"text": "a"}'.encode("utf-16"),
        '{"text": "a"}'.encode("utf-16-be"),
        b"[" * 30_000,
        b"1" * 5000,
    ],
    ids=lambda body: repr(body[:16]),
)
@pytest.mark.anyio
async def test_invalid_json_is_a_problem(shared: FastAPI, body: bytes) -> None:
    async with connect(shared) as client:
        response = await client.post("/next-word", content=body, headers=JSON)
    assert (response.status_code, response.headers["content-type"]) == (400, "application/problem+json")


ODD = [
    b'{"text": "a"}',
    b' \r\n\t{"te\\u0078t": "\\ud83d\\ude00\\u0000", "model": null}\n',
    b'\xef\xbb\xbf{"text": "a"}',
    b'{"text": 5, "text": "b"}',
    b'{"text": "a", "text": 5}',
    b'{"texts": ["a"], "texts": ["b", "c"], "mode": "sentence"}',
    b'{"text": "a", "text": "b"%b}' % (b', "text": "c"' * 40),
    b'{"text": "a", "top_k": 2.0, "words": 2e0}',
    b'{"text": "a", "top_k": 2.5, "words": NaN, "complete": 1}',
    b'{"text": "a", "top_k": 1e400, "words": -Infinity}',
    b'{"text": "a", "top_k": 1000000000000000000000, "model": "none"}',
    b'{"text": "a", "alternatives": true, "per_token": "yes", "mode": "word"}',
    b'{"text": "a", "texts": ["b"]}',
    b'{"texts": ["a", "\\n", 7, "\\ud83d"]}',
    b'{"texts": []}',
    b'{"text": "\\ud83d"}',
    b'{"text": "a\tb"}',
    b'{"text": "a\x00"}',
    b'{"text": "a"}\x0b',
    b'{"text": "\xff"}',
    b'{"text": "a",}',
    b'{"text": "a", "other": %b}' % (b"[" * 500 + b"]" * 500),
    b'{"text": "a", "other": %b}' % (b"1" * 4000),
    b"[" * 300 + b"]" * 300,
    b"null",
    b"{}",
    b"[]",
    b"",
]


@pytest.mark.parametrize("path", ["/next-word", "/perplexity"])
@pytest.mark.anyio
async def test_a_body_means_the_same_with_and_without_parameters_to_validate(served: FakeServed, path: str) -> None:
    payloads = list[Any]()

    async def answering(payload: Any, deadline: float | None) -> Any:
        payloads.append(payload)
        return await plausible(payload, deadline)

    async def answer(client: httpx.AsyncClient, body: bytes, **checked: str) -> tuple[int, str, str, list[Any]]:
        payloads.clear()
        response = await client.post(path, content=body, headers={**JSON, **checked})
        left = response.headers["ratelimit"].partition(";t=")[0]
        return response.status_code, response.text, left, payloads.copy()

    served.answering = answering
    plain, validating = (service(served, rate_limit="1000000/hour") for _ in range(2))
    async with connect(plain) as first, connect(validating) as second:
        for body in ODD:
            expected = await answer(first, body)
            assert await answer(second, body, **{"X-Request-Timeout": "60"}) == expected, body[:40]


async def chunks(count: int, sent: list[int], begin: bytes = b"") -> AsyncIterator[bytes]:
    yield begin
    for place in range(count):
        sent.append(place)
        yield b" " * 1024


@pytest.mark.anyio
async def test_a_body_with_too_many_fields_is_rejected(served: FakeServed) -> None:
    body = {"text": "a"} | {f"k{place}": 1 for place in range(1000)}
    async with connect(service(served)) as client:
        response = await client.post("/perplexity", json=body)
    assert response.status_code == 422
    assert response.json()["errors"] == [{"field": "body", "message": "expected at most 32 fields, found 1001"}]


@pytest.mark.parametrize(("size", "close"), [(200, None), (17 * 100, "close")])
@pytest.mark.anyio
async def test_the_connection_stays_open_after_a_slightly_too_large_body(
    served: FakeServed, size: int, close: str | None
) -> None:
    async with connect(service(served, max_body_bytes=100 * 1024)) as client:
        response = await client.post("/perplexity", content=b" " * size * 1024, headers=JSON)
    assert (response.status_code, response.headers.get("connection")) == (413, close)


@pytest.mark.parametrize(("path", "limit"), [("/next-word", NEXT_WORD_BYTES // 1024), ("/perplexity", 100)])
@pytest.mark.anyio
async def test_a_body_of_unknown_size_is_not_read_without_end(served: FakeServed, path: str, limit: int) -> None:
    sent: list[int] = []
    async with connect(service(served, max_body_bytes=100 * 1024)) as client:
        response = await client.post(path, content=chunks(18 * limit, sent), headers=JSON)
    assert response.status_code == 413
    assert limit < len(sent) <= 17 * limit + 1
    assert response.headers["connection"] == "close"


@pytest.mark.anyio
async def test_a_too_large_body_of_unknown_size_is_drained_before_it_is_rejected(served: FakeServed) -> None:
    sent: list[int] = []
    async with connect(service(served, max_body_bytes=64 * 1024)) as client:
        response = await client.post("/perplexity", content=chunks(200, sent), headers=JSON)
    assert (response.status_code, len(sent)) == (413, 200)
    assert "connection" not in response.headers


@pytest.mark.parametrize("path", ["/digits", "/captions"])
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("image/png", 400),  # not an image
        ("IMAGE/jpeg; charset=utf-8", 400),
        ("image/x-of-my-own", 400),
        ("multipart/form-data; boundary=x", 400),
        ("multipart/mixed; boundary=x", 415),
        ("application/json", 415),
        ("application/octet-stream", 415),
        ("application/x-www-form-urlencoded", 415),
        ("image", 415),
        ("", 415),
        (None, 415),
    ],
)
@pytest.mark.anyio
async def test_an_image_body_needs_its_content_type(shared: FastAPI, path: str, sent: str | None, status: int) -> None:
    headers = {} if sent is None else {"Content-Type": sent}
    async with connect(shared) as client:
        response = await client.post(path, content=b"", headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (status, "application/problem+json")
    assert status == 400 or "expected multipart/form-data or image/*" in response.json()["detail"]


@pytest.mark.parametrize(
    ("first", "second", "status"), [("image/png", "application/json", 400), ("application/json", "image/png", 415)]
)
@pytest.mark.anyio
async def test_the_first_of_two_content_types_counts(shared: FastAPI, first: str, second: str, status: int) -> None:
    async with connect(shared) as client:
        headers = [("Content-Type", first), ("Content-Type", second)]
        assert (await client.post("/digits", content=b"", headers=headers)).status_code == status


@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=x"])
@pytest.mark.anyio
async def test_an_upload_is_limited_while_it_arrives(served: FakeServed, content_type: str) -> None:
    sent: list[int] = []
    async with connect(service(served, max_upload_bytes=100 * 1024)) as client:
        headers = {"Content-Type": content_type}
        begin = b"" if content_type == "image/png" else b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
        reported = await client.post("/digits", content=begin + b" " * 101 * 1024, headers=headers)
        counted = await client.post("/digits", content=chunks(2000, sent, begin), headers=headers)
    for response in (reported, counted):
        assert response.status_code == 413
        assert response.json()["detail"].startswith("body: expected at most 102400 bytes")
    assert 100 < len(sent) <= 17 * 100 + 1


@pytest.mark.anyio
async def test_a_body_declared_far_too_large_is_not_read(served: FakeServed) -> None:
    sent: list[int] = []
    async with connect(service(served, max_body_bytes=64 * 1024)) as client:
        response = await client.post(
            "/perplexity", content=chunks(9, sent), headers={**JSON, "Content-Length": "1048577"}
        )
    assert response.status_code == 413
    assert not sent


@pytest.mark.anyio
async def test_a_body_of_exactly_the_limit_is_accepted(served: FakeServed) -> None:
    body = json.dumps({"text": ""}).encode()
    body = body.replace(b'""', b'"' + b"a" * (1024 - len(body)) + b'"')
    async with connect(service(served, max_body_bytes=1024)) as client:
        assert (await client.post("/perplexity", content=body, headers=JSON)).status_code == 200
        assert (await client.post("/perplexity", content=body + b" ", headers=JSON)).status_code == 413


@pytest.mark.anyio
async def test_large_bodies_in_progress_take_a_bounded_memory(
    served: FakeServed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.main.DOCUMENTS_BYTES", 150_000)
    started, go = asyncio.Event(), asyncio.Event()

    async def waiting(payload: Any, deadline: float | None) -> Any:
        started.set()
        await go.wait()
        return await plausible(payload, deadline)

    large = json.dumps({"text": "a" * 100_000}).encode()
    async with connect(service(served)) as client:
        served.answering = waiting
        first = asyncio.ensure_future(client.post("/perplexity", content=large, headers=JSON))
        await started.wait()
        refused = await client.post("/perplexity", content=large, headers=JSON)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        go.set()
        assert (await client.post("/perplexity", content=b'{"text": "a"}', headers=JSON)).status_code == 200
        assert (await first).status_code == 200
        assert (await client.post("/perplexity", content=large, headers=JSON)).status_code == 200


@pytest.mark.parametrize(("path", "content_type"), [("/perplexity", "application/json"), ("/digits", "image/png")])
@pytest.mark.anyio
async def test_a_body_for_which_the_disk_is_full_is_refused(
    shared: FastAPI, monkeypatch: pytest.MonkeyPatch, path: str, content_type: str
) -> None:
    async def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(UploadFile, "write", full)
    async with connect(shared) as client:
        response = await client.post(path, content=b" " * 100_000, headers={"Content-Type": content_type})
    assert response.status_code == 503
    assert response.json()["detail"] == "body: can't be stored: No space left on device; retry later"


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/next-word", "application/json"),
        ("/digits", "image/png"),
        ("/captions", "multipart/form-data; boundary=x"),
    ],
)
@pytest.mark.anyio
async def test_a_body_that_never_arrives_times_out(served: FakeServed, path: str, content_type: str) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"--x"
        await asyncio.get_running_loop().create_future()

    async with connect(service(served, request_timeout_s=0.01)) as client:
        response = await client.post(path, content=never(), headers={"Content-Type": content_type})
    assert response.status_code == 504


@pytest.mark.parametrize("sent", ["0.01", " 0.01 "])
@pytest.mark.parametrize(("path", "content_type"), [("/next-word", "application/json"), ("/digits", "image/png")])
@pytest.mark.anyio
async def test_the_timeout_of_the_client_starts_with_the_request(
    shared: FastAPI, path: str, content_type: str, sent: str
) -> None:
    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.get_running_loop().create_future()

    headers = {"Content-Type": content_type, "X-Request-Timeout": sent}
    async with connect(shared) as client:
        response = await client.post(path, content=never(), headers=headers)
    assert (response.status_code, response.json()["type"]) == (504, "/problems/deadline-exceeded")
    assert "expected within 0.01 s" in response.json()["detail"]


@pytest.mark.parametrize(("sent", "limit"), [("5", 5), ("1000", 120), (None, 120)])
@pytest.mark.anyio
async def test_a_model_gets_the_remaining_time(served: FakeServed, sent: str | None, limit: float) -> None:
    deadlines, times = [], []

    async def answering(payload: Any, deadline: float | None) -> Any:
        deadlines.append(deadline)
        return await plausible(payload, deadline)

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"text": '
        times.append(time.monotonic())
        yield b'"a"}'

    served.answering = answering
    headers = JSON if sent is None else {**JSON, "X-Request-Timeout": sent}
    async with connect(service(served)) as client:
        before = time.monotonic()
        await client.post("/next-word", content=slowly(), headers=headers)
    (deadline,) = deadlines
    assert deadline is not None
    assert before + limit <= deadline < times[0] + limit  # from the start of the request, not from the end of its body


@pytest.mark.parametrize("sent", ["0", "-1", "nan", "inf", "soon", ""])
@pytest.mark.anyio
async def test_an_invalid_timeout_is_reported(shared: FastAPI, sent: str) -> None:
    async with connect(shared) as client:
        response = await client.post("/next-word", json={"text": "a"}, headers={"X-Request-Timeout": sent})
    assert (response.status_code, response.json()["errors"][0]["field"]) == (422, "X-Request-Timeout")


def request(path: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: service", "Content-Type: application/json", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.mark.parametrize(("path", "size"), [("/next-word", 1), ("/perplexity", 1), ("/perplexity", 100_000)])
@pytest.mark.parametrize("protocol", [None, HttpToolsProtocol], ids=["bounded", "plain uvicorn"])
@pytest.mark.parametrize(
    "more", ["X-Ignored: 1", "X-Request-Timeout: 60"], ids=["no parameters", "a header to validate"]
)
def test_a_disconnect_cancels_the_work(
    served: FakeServed, path: str, size: int, protocol: type[asyncio.Protocol] | None, more: str
) -> None:
    started, cancelled = threading.Event(), threading.Event()

    async def endless(payload: Any, deadline: float | None) -> Any:
        started.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    served.answering = endless
    body = json.dumps({"text": "a" * size}).encode()
    with listening(service(served), protocol) as connection:
        connection.sendall(request(path, b"", f"Content-Length: {len(body)}", "Expect: 100-continue", more))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)  # of a large one, reading stops at its end
        assert started.wait(30)
        connection.close()
        assert cancelled.wait(30)


def test_a_connection_serves_several_requests(served: FakeServed) -> None:
    body = b'{"text": "a", "per_token": true}'
    with listening(service(served)) as connection, connection.makefile("rb") as received:
        for _ in range(3):
            connection.sendall(request("/perplexity", body, f"Content-Length: {len(body)}"))
            assert received.readline() == b"HTTP/1.1 200 OK\r\n"
            while received.readline() != b"0\r\n":  # the last chunk
                pass
            assert received.readline() == b"\r\n"


def test_an_endless_body_is_rejected_and_its_connection_closed(served: FakeServed) -> None:
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    app = service(served, max_body_bytes=64 * 1024)
    with listening(app) as connection, connection.makefile("rb") as received:
        connection.sendall(request("/perplexity", chunk * 17, "Transfer-Encoding: chunked"))
        answer = received.read()  # to the end of the connection
    head, _, reported = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"x-request-id: " in head
    assert json.loads(reported)["type"] == "/problems/too-large"


def test_accepted_work_is_finished_before_the_service_stops(served: FakeServed) -> None:
    started, go = threading.Event(), threading.Event()

    async def slow(payload: Any, deadline: float | None) -> Any:
        started.set()
        await asyncio.to_thread(go.wait)
        return await plausible(payload, deadline)

    served.answering = slow
    body = b'{"text": "a"}'
    with listening(service(served)) as connection, connection.makefile("rb") as received:
        connection.sendall(request("/next-word", body, f"Content-Length: {len(body)}"))
        assert started.wait(30)
        go.set()
        assert received.readline() == b"HTTP/1.1 200 OK\r\n"
    assert served.closed
