"""What bounds a connection before there is a request."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
from typing import Any

import pytest

from app.server.protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED, PIECE, bounded
from tests.api.conftest import FakeServed, listening, service

ASK = b"GET /livez HTTP/1.1\r\nHost: service\r\n"
NOT_ANSWERED = "nothing was answered, and the connection was closed"


def everything(connection: socket.socket) -> bytes:
    """All that comes until the end. That is a reset where the server closes before it has read what was sent on."""
    content = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(2**16):
            content += piece
    return content


def told(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """The one answer on a connection that the server then closes."""
    answer = everything(connection)
    assert answer, NOT_ANSWERED
    assert answer.count(b"HTTP/1.1 ") == 1
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in lines), json.loads(body)


def send(connection: socket.socket, content: bytes) -> None:
    """Send what the server may refuse while it comes."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(content)


@pytest.mark.parametrize(
    "head",
    [
        ASK + b"X-Long: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        ASK + b"X-Long: " + b"x" * (MAX_HEAD_BYTES + 2000),  # and no end
        ASK + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n",
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: service\r\n\r\n",
    ],
    ids=["a long field", "an endless field", "many fields", "a long target"],
)
def test_a_head_that_is_too_large_is_refused(served: FakeServed, head: bytes) -> None:
    with listening(service(served)) as connection:
        for start in range(0, len(head), 1000):
            send(connection, head[start : start + 1000])
        status, headers, problem = told(connection)
    assert (status, problem["status"]) == (431, 431)
    assert (headers["content-type"], headers["connection"]) == ("application/problem+json", "close")
    assert headers["x-request-id"]
    assert headers["x-content-type-options"] == "nosniff"


def test_the_largest_head_is_taken_in_pieces_and_a_large_body_after_it(served: FakeServed) -> None:
    fields = b"".join(b"X-%d: y\r\n" % place for place in range(MAX_HEADERS - 4))
    body = b'{"text": "' + b"a" * 60_000 + b'"}'
    head = b"POST /next-word HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: "
    request = head + b"%d\r\nX-Long: " % len(body) + b"x" * (MAX_HEAD_BYTES - 2000) + b"\r\n" + fields + b"\r\n" + body
    with listening(service(served)) as connection, connection.makefile("rb") as received:
        for start in range(0, len(request), 7000):
            connection.sendall(request[start : start + 7000])
        assert received.readline() == b"HTTP/1.1 200 OK\r\n"


def test_a_head_that_never_ends_is_cut_off(served: FakeServed) -> None:
    with listening(service(served), bounded(100, head_s=0.05)) as connection:
        connection.sendall(ASK)
        status, _, problem = told(connection)
    assert status == 408
    assert problem["detail"] == "expected the head of the request within 0.05 s"


@pytest.mark.parametrize("first", [b"", ASK + b"\r\n"], ids=["at once", "after an answer"])
def test_a_connection_without_a_request_is_closed_without_a_word(served: FakeServed, first: bytes) -> None:
    with listening(service(served), bounded(100, head_s=0.05)) as connection, connection.makefile("rb") as received:
        connection.sendall(first)
        assert received.read().count(b"HTTP/1.1 ") == bool(first)


def test_a_body_that_is_no_longer_wanted_may_not_trickle_for_ever(served: FakeServed) -> None:
    with listening(service(served), bounded(100, head_s=0.05)) as connection, connection.makefile("rb") as received:
        connection.sendall(ASK + b"Content-Length: 1000000\r\n\r\n" + b"x" * 100)
        assert received.readline() == b"HTTP/1.1 200 OK\r\n"
        received.read()  # comes to an end


def test_an_answer_may_take_longer_than_a_head(served: FakeServed) -> None:
    plausible = served.answering

    async def slow(payload: Any, deadline: float | None) -> Any:
        await asyncio.sleep(0.2)  # the head's time passes meanwhile
        return await plausible(payload, deadline)

    served.answering = slow
    body = b'{"text": "a"}'
    head = b"POST /next-word HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n"
    with listening(service(served), bounded(100, head_s=0.1)) as connection, connection.makefile("rb") as received:
        connection.sendall(head + body)
        assert received.readline() == b"HTTP/1.1 200 OK\r\n"


def test_who_does_not_read_is_cut_off(served: FakeServed) -> None:
    left = threading.Event()

    class Watched(bounded(100, unread_s=0.05)):  # type: ignore[misc]  # made by a call
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


def test_one_connection_too_many_is_refused_and_there_is_room_again_after_one_has_left(served: FakeServed) -> None:
    with listening(service(served), bounded(1)) as first:
        first.sendall(ASK + b"\r\n")
        assert first.recv(12) == b"HTTP/1.1 200"
        with socket.create_connection(first.getpeername(), timeout=30) as second:
            status, headers, problem = told(second)
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
        ASK + b" folded: x\r\n\r\n" + SMUGGLED,
        ASK + b"X: a\rb\r\n\r\n" + SMUGGLED,
        ASK + b"X: a\0b\r\n\r\n" + SMUGGLED,
        ASK + b"X y: z\r\n\r\n" + SMUGGLED,
        ASK + b": z\r\n\r\n" + SMUGGLED,
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
def test_what_two_servers_could_read_as_two_things_is_refused_and_nothing_after_it_is_answered(
    served: FakeServed, request_: bytes
) -> None:
    with listening(service(served)) as connection:
        send(connection, request_)
        connection.shutdown(socket.SHUT_WR)
        answer = everything(connection)
    assert b"seqserve_requests" not in answer
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert not answer or 400 <= int(answer.split()[1]) < 500
    assert b"Traceback" not in answer


@pytest.mark.parametrize("piece", [1, 7, 10_000])
@pytest.mark.parametrize(
    "wish",
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
def test_who_would_rather_speak_another_protocol_is_answered_in_this_one_and_nothing_after_it(
    served: FakeServed, wish: bytes, body: bytes, piece: int
) -> None:
    request = CHUNKED + wish + b"X-Request-Id: mine\r\n" + body + SMUGGLED
    with listening(service(served)) as connection:
        for start in range(0, len(request), piece):
            send(connection, request[start : start + piece])
        head, _, answer = everything(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert {b"connection: close", b"x-request-id: mine"} <= set(head.split(b"\r\n"))
    assert json.loads(answer)["context_tokens"] == 2


@pytest.mark.parametrize("rude", [True, False], ids=["reset", "closed"])
def test_who_leaves_files_unread_that_it_asked_for_at_once_leaves_no_trace_in_the_log(
    served: FakeServed, rude: bool, caplog: pytest.LogCaptureFixture
) -> None:
    left = threading.Event()

    class Watched(bounded(100)):  # type: ignore[misc]  # made by a call
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            left.set()

    with listening(service(served), Watched) as connection:
        with connection.makefile("rb") as received:
            connection.sendall(b"GET /docs/files/swagger-ui-bundle.js HTTP/1.1\r\nHost: service\r\n\r\n" * 4)
            assert received.readline() == b"HTTP/1.1 200 OK\r\n"
        if rude:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert left.wait(30)
    assert not [record for record in caplog.records if record.exc_info]


def test_answers_without_a_body_go_out_in_their_order(served: FakeServed) -> None:
    asked = b"".join(b"%b /livez HTTP/1.1\r\nHost: service\r\n\r\n" % method for method in (b"HEAD", b"GET", b"HEAD"))
    with listening(service(served)) as connection, connection.makefile("rb") as received:
        connection.sendall(asked + LAST)
        answers = received.read().split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [bool(answer.partition(b"\r\n\r\n")[2]) for answer in answers] == [False, True, False, True]


LAST = ASK + b"Connection: close\r\n\r\n"
SUGGEST = CHUNKED + b'Content-Length: 13\r\n\r\n{"text": "a"}'


@pytest.mark.parametrize("count", [MAX_PIPELINED + 2, 40, 5000])
def test_however_many_requests_come_at_once_all_are_answered_and_few_wait(served: FakeServed, count: int) -> None:
    waiting = list[int]()

    class Watched(bounded(100)):  # type: ignore[misc]  # made by a call
        def on_response_complete(self) -> None:
            waiting.append(len(self.pipeline))
            super().on_response_complete()

    with listening(service(served), Watched) as connection, connection.makefile("rb") as received:
        sending = threading.Thread(target=send, args=(connection, (ASK + b"\r\n") * count + LAST))
        sending.start()
        assert received.read().count(b"HTTP/1.1 200 ") == count + 1
        sending.join()
    assert max(waiting) <= MAX_PIPELINED + PIECE // len(ASK)


@pytest.mark.parametrize("first", [SUGGEST, SUGGEST + ASK + b"\r\n"], ids=["one", "and one that waits"])
@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"\0\1nonsense\r\n\r\n", 400),
        (ASK + b"X: " + b"x" * MAX_HEAD_BYTES, 431),
        (CHUNKED + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n", 400),
    ],
    ids=["nonsense", "an endless head", "a body of nonsense"],
)
def test_what_is_no_request_takes_no_answer_from_those_before(
    served: FakeServed, first: bytes, bad: bytes, status: int
) -> None:
    with listening(service(served)) as connection:
        send(connection, first + bad + LAST)
        *good, last = everything(connection).split(b"HTTP/1.1 ")[1:]
    assert [int(answer.split()[0]) for answer in good] == [200] * first.count(b"HTTP/1.1")
    assert int(last.split()[0]) == status
    assert b"connection: close" in last.lower()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (ASK + b"Host: other\r\n\r\n", 400),
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (CHUNKED + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (CHUNKED + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
    ],
    ids=["no host", "two hosts", "no host in 1.0", "gzip", "gzip in a field of its own"],
)
def test_a_request_says_once_whom_it_asks_and_has_no_coding_but_chunked(
    served: FakeServed, head: bytes, status: int
) -> None:
    with listening(service(served)) as connection:
        send(connection, head)
        assert told(connection)[0] == status


def test_a_trailer_does_not_become_a_header(served: FakeServed) -> None:
    body = b'd\r\n{"text": "a"}\r\n0\r\nX-Request-Id: smuggled\r\n\r\n'
    with listening(service(served)) as connection, connection.makefile("rb") as received:
        connection.sendall(CHUNKED + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + body)
        answer = received.read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"smuggled" not in answer


def test_a_request_that_is_none_does_not_come_into_the_middle_of_an_answer(served: FakeServed) -> None:
    begun, left = threading.Event(), threading.Event()

    async def endless(payload: Any, deadline: float | None) -> Any:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            left.set()

    served.answering = endless
    with listening(service(served)) as connection:
        connection.sendall(SUGGEST + ASK + b"\r\n")  # the second waits for the first
        assert begun.wait(30)
        connection.sendall(b"nonsense\r\n\r\n")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.close()
        assert left.wait(30)  # its caller is still seen to leave
