"""Connection limits: heads, pipelines, timeouts, malformed and smuggled requests."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
from typing import Any

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.server.heads import MAX_HEAD_BYTES, MAX_HEADERS
from app.server.protocol import CHUNK_BYTES, MAX_PIPELINED, limited
from tests.api.conftest import Endless, FakeServed, listening, service

GET = b"GET /livez HTTP/1.1\r\nHost: service\r\n"
NO_RESPONSE = "the connection was closed without a response"


def read_all(connection: socket.socket) -> bytes:
    """Read until the connection ends, by a reset if the server closes with unread data."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(2**16):
            content += piece
    return content


def only_response(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Return status, headers and JSON body of the only response before the server closes the connection."""
    answer = read_all(connection)
    assert answer, NO_RESPONSE
    assert answer.count(b"HTTP/1.1 ") == 1
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), json.loads(body)


def send(connection: socket.socket, content: bytes) -> None:
    """Send data that the server may reject before it is complete."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(content)


@pytest.mark.parametrize(
    "head",
    [
        GET + b"X-Long: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        GET + b"X-Long: " + b"x" * (MAX_HEAD_BYTES + 2000),  # and no end
        GET + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: service\r\n\r\n",
    ],
    ids=["a long field", "an endless field", "many fields", "a long target"],
)
def test_a_head_over_the_limit_gets_431(served: FakeServed, head: bytes) -> None:
    with listening(service(served)) as connection:
        for start in range(0, len(head), 1000):
            send(connection, head[start : start + 1000])
        status, headers, problem = only_response(connection)
    assert (status, problem["status"]) == (431, 431)
    assert (headers["content-type"], headers["connection"]) == ("application/problem+json", "close")
    assert headers["x-request-id"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_head_at_the_limit_is_accepted_in_chunks_with_a_large_body(served: FakeServed) -> None:
    fields = b"".join(b"X-%d: y\r\n" % index for index in range(MAX_HEADERS - 4))
    body = b'{"text": "' + b"a" * 60_000 + b'"}'
    head = b"POST /next-word HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: "
    request = head + b"%d\r\nX-Long: " % len(body) + b"x" * (MAX_HEAD_BYTES - 2000) + b"\r\n" + fields + b"\r\n" + body
    with listening(service(served)) as connection, connection.makefile("rb") as received:
        for start in range(0, len(request), 7000):
            connection.sendall(request[start : start + 7000])
        assert received.readline() == b"HTTP/1.1 200 OK\r\n"


def test_an_incomplete_head_times_out_with_408(served: FakeServed) -> None:
    with listening(service(served), limited(100, head_s=0.05)) as connection:
        connection.sendall(GET)
        status, _, problem = only_response(connection)
    assert status == 408
    assert problem["detail"] == "expected the head of the request within 0.05 s"


@pytest.mark.parametrize("first", [b"", GET + b"\r\n"], ids=["at once", "after an answer"])
def test_an_idle_connection_is_closed_without_a_response(served: FakeServed, first: bytes) -> None:
    with listening(service(served), limited(100, head_s=0.05)) as connection, connection.makefile("rb") as received:
        connection.sendall(first)
        assert received.read().count(b"HTTP/1.1 ") == bool(first)


def test_a_slow_body_after_the_response_times_out(served: FakeServed) -> None:
    with listening(service(served), limited(100, head_s=0.05)) as connection, connection.makefile("rb") as received:
        connection.sendall(GET + b"Content-Length: 1000000\r\n\r\n" + b"x" * 100)
        assert received.readline() == b"HTTP/1.1 200 OK\r\n"
        received.read()  # ends


def test_the_head_timeout_does_not_apply_to_responses(served: FakeServed) -> None:
    plausible = served.answering

    async def slow(payload: Any, deadline: float | None) -> Any:
        await asyncio.sleep(1.1)  # longer than the head timeout
        return await plausible(payload, deadline)

    served.answering = slow
    body = b'{"text": "a"}'
    head = b"POST /next-word HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
    with listening(service(served), limited(100, head_s=1.0)) as connection, connection.makefile("rb") as received:
        connection.sendall(head + body)
        assert received.readline() == b"HTTP/1.1 200 OK\r\n"


def test_a_client_that_does_not_read_is_disconnected(served: FakeServed) -> None:
    left = threading.Event()

    class Watched(limited(100, write_timeout_s=0.05)):  # type: ignore[misc]  # made by a call
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            left.set()

    text = "a " * 60_000
    body = json.dumps({"text": text, "per_token": True, "alternatives": 10}).encode()
    head = (
        f"POST /perplexity HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    with listening(service(served), Watched) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        assert left.wait(60)


def test_a_connection_over_the_limit_gets_503(served: FakeServed) -> None:
    with listening(service(served), limited(1)) as first:
        first.sendall(GET + b"\r\n")
        assert first.recv(12) == b"HTTP/1.1 200"
        with socket.create_connection(first.getpeername(), timeout=30) as second:
            status, headers, problem = only_response(second)
    assert (status, headers["retry-after"], problem["detail"]) == (503, "1", "too many connections")


CHUNKED = b"POST /next-word HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"
SMUGGLED = b"GET /metrics HTTP/1.1\r\nHost: service\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        CHUNKED + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345" + SMUGGLED,
        CHUNKED + b"Content-Length: 5, 5\r\n\r\n12345" + SMUGGLED,
        CHUNKED + b"Content-Length: +5\r\n\r\n12345" + SMUGGLED,
        CHUNKED + b"Content-Length: -5\r\n\r\n12345" + SMUGGLED,
        CHUNKED + b"Content-Length: 0x5\r\n\r\n12345" + SMUGGLED,
        CHUNKED + b"Content-Length: 99999999999999999999999\r\n\r\n12345" + SMUGGLED,
        CHUNKED + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n" + SMUGGLED,
        CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + SMUGGLED,
        CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + SMUGGLED,
        GET + b" folded: x\r\n\r\n" + SMUGGLED,
        GET + b"X: a\rb\r\n\r\n" + SMUGGLED,
        GET + b"X: a\0b\r\n\r\n" + SMUGGLED,
        GET + b"X y: z\r\n\r\n" + SMUGGLED,
        GET + b": z\r\n\r\n" + SMUGGLED,
        b"GET /livez HTTP/9.9\r\nHost: service\r\n\r\n" + SMUGGLED,
        b"GET /livez\r\n\r\n" + SMUGGLED,
        b"GET /liv\xc3\xa9z HTTP/1.1\r\nHost: service\r\n\r\n" + SMUGGLED,
        b"CONNECT service:80 HTTP/1.1\r\nHost: service\r\n\r\n" + SMUGGLED,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED,
        CHUNKED + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\n12345" + SMUGGLED,
        CHUNKED + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 500\r\n\r\n" + SMUGGLED,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9,
    ],
    ids=lambda sent: repr(sent[-len(SMUGGLED) - 60 : -len(SMUGGLED)])[:70],
)
def test_an_ambiguous_request_is_rejected_and_a_smuggled_one_gets_no_response(
    served: FakeServed, request_: bytes
) -> None:
    with listening(service(served)) as connection:
        send(connection, request_)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert b"seqserve_requests" not in answer
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert not answer or 400 <= int(answer.split()[1]) < 500
    assert b"Traceback" not in answer


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    "upgrade",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
        b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n",
    ],
    ids=["h2c", "websocket"],
)
@pytest.mark.parametrize(
    "body",
    [b'Content-Length: 13\r\n\r\n{"text": "a"}', b'Transfer-Encoding: chunked\r\n\r\nd\r\n{"text": "a"}\r\n0\r\n\r\n'],
    ids=["of known length", "in chunks"],
)
def test_an_upgrade_is_ignored_and_the_connection_closes_after_the_response(
    served: FakeServed, upgrade: bytes, body: bytes, size: int
) -> None:
    request = CHUNKED + upgrade + b"X-Request-Id: mine\r\n" + body + SMUGGLED
    with listening(service(served)) as connection:
        for start in range(0, len(request), size):
            send(connection, request[start : start + size])
        head, _, answer = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert {b"connection: close", b"x-request-id: mine"} <= set(head.split(b"\r\n"))
    assert json.loads(answer)["context_tokens"] == 2


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "closed"])
def test_a_disconnect_during_pipelined_files_logs_no_traceback(
    served: FakeServed, reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    left = threading.Event()

    class Watched(limited(100)):  # type: ignore[misc]  # made by a call
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            left.set()

    with listening(service(served), Watched) as connection:
        with connection.makefile("rb") as received:
            connection.sendall(b"GET /docs/files/swagger-ui-bundle.js HTTP/1.1\r\nHost: service\r\n\r\n" * 4)
            assert received.readline() == b"HTTP/1.1 200 OK\r\n"
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert left.wait(30)
    assert not [record for record in caplog.records if record.exc_info]


def test_pipelined_responses_without_a_body_keep_their_order(served: FakeServed) -> None:
    requests = b"".join(
        b"%b /livez HTTP/1.1\r\nHost: service\r\n\r\n" % method for method in (b"HEAD", b"GET", b"HEAD")
    )
    with listening(service(served)) as connection, connection.makefile("rb") as received:
        connection.sendall(requests + LAST)
        answers = received.read().split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [bool(answer.partition(b"\r\n\r\n")[2]) for answer in answers] == [False, True, False, True]


LAST = GET + b"Connection: close\r\n\r\n"
SUGGEST = CHUNKED + b'Content-Length: 13\r\n\r\n{"text": "a"}'


@pytest.mark.parametrize("count", [MAX_PIPELINED + 2, 40, 5000])
def test_all_pipelined_requests_are_answered_with_a_bounded_queue(served: FakeServed, count: int) -> None:
    waiting = list[int]()

    class Watched(limited(100)):  # type: ignore[misc]  # made by a call
        def on_response_complete(self) -> None:
            waiting.append(len(self.pipeline))
            super().on_response_complete()

    with listening(service(served), Watched) as connection, connection.makefile("rb") as received:
        sending = threading.Thread(target=send, args=(connection, (GET + b"\r\n") * count + LAST))
        sending.start()
        assert received.read().count(b"HTTP/1.1 200 ") == count + 1
        sending.join()
    assert max(waiting) <= MAX_PIPELINED + CHUNK_BYTES // len(GET)


@pytest.mark.parametrize("first", [SUGGEST, SUGGEST + GET + b"\r\n"], ids=["one", "and one that waits"])
@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"\0\1nonsense\r\n\r\n", 400),
        (GET + b"X: " + b"x" * MAX_HEAD_BYTES, 431),
        (CHUNKED + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
    ],
    ids=["nonsense", "an endless head", "a body of nonsense"],
)
def test_a_malformed_request_does_not_affect_earlier_responses(
    served: FakeServed, first: bytes, bad: bytes, status: int
) -> None:
    with listening(service(served)) as connection:
        send(connection, first + bad + LAST)
        *good, last = read_all(connection).split(b"HTTP/1.1 ")[1:]
    assert [int(answer.split()[0]) for answer in good] == [200] * first.count(b"HTTP/1.1")
    assert int(last.split()[0]) == status
    assert b"connection: close" in last.lower()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (GET + b"Host: other\r\n\r\n", 400),
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (CHUNKED + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (CHUNKED + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
    ],
    ids=["no host", "two hosts", "no host in 1.0", "gzip", "gzip in a field of its own"],
)
def test_a_request_needs_one_host_and_no_transfer_coding_but_chunked(
    served: FakeServed, head: bytes, status: int
) -> None:
    with listening(service(served)) as connection:
        send(connection, head)
        assert only_response(connection)[0] == status


def test_chunks_of_one_byte_are_passed_on_together(served: FakeServed, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()
    on_body = HttpToolsProtocol.on_body

    def counted(protocol: HttpToolsProtocol, body: bytes) -> None:
        sizes.append(len(body))
        on_body(protocol, body)

    monkeypatch.setattr(HttpToolsProtocol, "on_body", counted)
    body = b'{"text": "' + b"a" * 5000 + b'"}'
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with listening(service(served)) as connection, connection.makefile("rb") as received:
        connection.sendall(CHUNKED + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunks)
        assert received.readline() == b"HTTP/1.1 200 OK\r\n"
    assert sum(sizes) == len(body)
    assert len(sizes) < len(body) / 50


@pytest.mark.parametrize(
    ("version", "first"), [(b"1.0", b"HTTP/1.1 200 OK\r\n"), (b"1.1", b"HTTP/1.1 100 Continue\r\n")]
)
def test_an_expectation_of_http_1_0_is_ignored(served: FakeServed, version: bytes, first: bytes) -> None:
    head = CHUNKED.replace(b"1.1", version) + b"Expect: 100-continue\r\nContent-Length: 13\r\n\r\n"
    with listening(service(served)) as connection, connection.makefile("rb") as received:
        connection.sendall(head)
        if version == b"1.1":
            assert received.readline() == first
        connection.sendall(b'{"text": "a"}')
        if version == b"1.0":
            assert received.readline() == first


def test_a_trailer_is_not_a_header(served: FakeServed) -> None:
    body = b'd\r\n{"text": "a"}\r\n0\r\nX-Request-Id: smuggled\r\n\r\n'
    with listening(service(served)) as connection, connection.makefile("rb") as received:
        connection.sendall(CHUNKED + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + body)
        answer = received.read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"smuggled" not in answer


def test_a_malformed_request_is_not_answered_inside_another_response(served: FakeServed) -> None:
    served.answering = endless = Endless()
    with listening(service(served)) as connection:
        connection.sendall(SUGGEST + GET + b"\r\n")  # the second waits for the first
        assert endless.started.wait(30)
        connection.sendall(b"nonsense\r\n\r\n")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.close()
        assert endless.cancelled.wait(30)  # the disconnect still cancels the request
