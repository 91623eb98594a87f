"""Limits of connections, half-closed clients, slow bodies, and closing without a lost response."""

import asyncio
import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from app.server.connections import MAX_PROBES, ConnectionLimits
from app.server.protocol import limited
from tests.api.conftest import Endless, FakeServed, listening, plausible, service
from tests.e2e.conftest import serving
from tests.server.test_protocol import GET, LAST, SUGGEST, only_response, read_all, send

POST = b"POST /next-word HTTP/1.1\r\nHost: service\r\nContent-Type: application/json\r\n"


class FakeConnection:
    """A connection with a given idle time."""

    def __init__(self, peer: str, idle_s: float = 0.0) -> None:
        self.peer = peer
        self.idle_s = idle_s
        self.closed = self.rejected = self.busy = False

    def close_if_idle(self) -> bool:
        self.closed = not self.busy
        return self.closed

    def reject(self) -> None:
        self.rejected = True


def admitted(limits: ConnectionLimits, *connections: FakeConnection) -> list[bool]:
    return [limits.admit(connection) for connection in connections]


def test_an_address_takes_its_share_and_leaves_the_rest_to_others() -> None:
    limits = ConnectionLimits(4, per_address=2)
    first = FakeConnection("192.0.2.1")
    assert admitted(limits, first, *map(FakeConnection, ["192.0.2.1", "192.0.2.1", "192.0.2.2"])) == [
        True,
        True,
        False,
        True,
    ]
    limits.release(first)
    assert admitted(limits, *map(FakeConnection, ["192.0.2.1", "192.0.2.1", "192.0.2.3"])) == [True, False, True]
    assert admitted(limits, FakeConnection("192.0.2.4")) == [False]


def test_a_network_of_ipv6_is_one_address_and_proxies_and_unix_sockets_are_not_limited() -> None:
    limits = ConnectionLimits(9, per_address=1, exempt=["10.0.0.0/8", "fd00::/8"])
    addresses = ["2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "10.1.1.1", "10.1.1.1", "fd00::1", "fd00::1", "", ""]
    assert admitted(limits, *map(FakeConnection, addresses)) == [True, False, *7 * [True]]


def test_the_connection_that_is_idle_longest_is_replaced_and_no_busy_one() -> None:
    limits = ConnectionLimits(3)
    busy, short, long = FakeConnection("a", 30), FakeConnection("b", 4), FakeConnection("c", 20)
    busy.busy = True
    assert admitted(limits, busy, short, long, FakeConnection("d"), FakeConnection("e")) == [
        True,
        True,
        True,
        True,
        False,
    ]
    assert (busy.closed, short.closed, long.closed) == (False, False, True)


def test_an_address_at_its_limit_replaces_its_own_connections_only() -> None:
    limits = ConnectionLimits(9, per_address=1)
    other, own = FakeConnection("192.0.2.1", 30), FakeConnection("192.0.2.2", 10)
    assert admitted(limits, other, own, FakeConnection("192.0.2.2")) == [True, True, True]
    assert (other.closed, own.closed) == (False, True)


def test_the_oldest_probe_gives_its_place_to_a_newer_one() -> None:
    limits = ConnectionLimits(1)
    _, *probes = connections = [FakeConnection("192.0.2.1") for _ in range(MAX_PROBES + 2)]
    assert admitted(limits, *connections) == [True, *[False] * (MAX_PROBES + 1)]
    assert [probe.rejected for probe in probes] == [True, *[False] * MAX_PROBES]


@pytest.mark.parametrize("path", [b"/livez", b"/readyz", b"/readyz?verbose"])
def test_a_probe_is_answered_beside_a_client_that_holds_all_connections(served: FakeServed, path: bytes) -> None:
    with listening(service(served), limited(1)) as first, contextlib.ExitStack() as stack:
        for _ in range(2 * MAX_PROBES):
            stack.enter_context(socket.create_connection(first.getpeername()))
        with socket.create_connection(first.getpeername(), timeout=30) as probe:
            probe.sendall(b"GET %b HTTP/1.1\r\nHost: service\r\n\r\n" % path)
            status, headers, _ = only_response(probe)
        assert (status, headers["connection"]) == (200, "close")
        with socket.create_connection(first.getpeername(), timeout=30) as other:
            send(other, SUGGEST)
            assert only_response(other)[0] == 503
        first.sendall(LAST)
        assert only_response(first)[0] == 200


def test_a_rejected_client_reads_its_response_while_it_still_sends(served: FakeServed) -> None:
    large = POST + b"Content-Length: 60000000\r\n\r\n" + b"x" * 1_000_000
    with listening(service(served), limited(1)) as first:
        for _ in range(20):
            with socket.create_connection(first.getpeername(), timeout=30) as second:
                second.sendall(large)
                assert only_response(second)[0] == 503


@pytest.mark.parametrize("slow_s", [0, 0.1])
@pytest.mark.parametrize("requests", [SUGGEST, SUGGEST * 3, GET + b"\r\n" + SUGGEST, SUGGEST + GET + b"\r\n" * 40])
def test_a_half_closed_client_gets_its_answers(served: FakeServed, requests: bytes, slow_s: float) -> None:
    async def slow(payload: Any, deadline: float | None) -> Any:
        await asyncio.sleep(slow_s)
        return await plausible(payload, deadline)

    served.answering = slow
    with listening(service(served)) as connection:
        connection.sendall(requests)
        connection.shutdown(socket.SHUT_WR)
        answers = read_all(connection).split(b"HTTP/1.1 ")
    assert answers[0] == b""
    assert [answer[:6] for answer in answers[1:]] == [b"200 OK"] * requests.count(b" HTTP/1.1")
    assert all(json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in answers[1:])


@pytest.mark.parametrize("linger", [True, False], ids=["reset", "closed"])
def test_a_client_that_has_closed_both_ways_is_disconnected(served: FakeServed, linger: bool) -> None:
    served.answering = endless = Endless()
    with listening(service(served)) as connection:
        connection.sendall(SUGGEST)
        assert endless.started.wait(30)
        if linger:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        assert endless.cancelled.wait(30)


@pytest.mark.parametrize("part", [GET, SUGGEST[:-3], POST + b"Transfer-Encoding: chunked\r\n\r\nd\r\n{"])
def test_a_request_that_ends_within_is_rejected(served: FakeServed, part: bytes) -> None:
    with listening(service(served)) as connection:
        connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        status, _, problem = only_response(connection)
    assert (status, problem["detail"]) == (
        400,
        "expected a complete request, found the end of the connection within it",
    )


def test_a_body_below_the_least_rate_times_out_with_408(served: FakeServed) -> None:
    with listening(service(served), limited(100, body_s=0.2)) as connection:
        connection.sendall(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 50)
        status, headers, problem = only_response(connection)
    assert (status, headers["connection"]) == (408, "close")
    assert problem["detail"] == "body: expected at least 512 bytes a second, found 0 in 0.2 s"


def test_a_body_at_the_least_rate_arrives(served: FakeServed) -> None:
    body = json.dumps({"text": "a" * 1000}).encode()
    with listening(service(served), limited(100, body_s=0.1)) as connection:
        connection.sendall(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 50):
            connection.settimeout(0.02)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(30)
            connection.sendall(body[start : start + 50])
        assert only_response(connection)[0] == 200


def test_a_server_that_reads_no_further_waits_for_the_body(served: FakeServed) -> None:
    started = threading.Event()

    async def slow(payload: Any, deadline: float | None) -> Any:
        started.set()
        await asyncio.sleep(0.5)
        return await plausible(payload, deadline)

    served.answering = slow
    waiting = POST + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: 13\r\n\r\n"
    with listening(service(served), limited(100, head_s=0.1, body_s=0.1)) as connection:
        connection.sendall(SUGGEST + waiting)  # the server continues the second after the first's response
        with connection.makefile("rb") as received:
            while not received.readline().endswith(b"HTTP/1.1 100 Continue\r\n"):
                pass
            connection.sendall(SUGGEST[-13:])
            assert received.read().count(b"HTTP/1.1 200 OK\r\n") == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /next-word HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET http://localhost/metrics HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n", 200),
        (b"GET http://evil/metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 403),
        (b"GET http://evil/metrics HTTP/1.0\r\n\r\n", 403),
        (b"GET HTTPS://evil:8000/livez?a=b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 200),
        (b"GET http://localhost@evil/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET ftp://localhost/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ],
)
def test_the_authority_of_the_target_is_the_host(served: FakeServed, head: bytes, status: int) -> None:
    with listening(service(served)) as connection:
        connection.sendall(head)
        assert read_all(connection).startswith(b"HTTP/1.1 %d " % status)


def test_connections_are_counted(tiny_store: Path) -> None:
    with serving(tiny_store, SEQSERVE_MAX_CONNECTIONS="2") as (client, _), contextlib.ExitStack() as stack:
        for _ in range(3):
            connection = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=30)
            stack.enter_context(connection)
            connection.sendall(GET + b"\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
        connection.recv(10_000)
        text = client.get("/metrics").text
    assert {"seqserve_connections 4.0", "seqserve_limited_connections_total 2.0"} <= set(text.splitlines())
