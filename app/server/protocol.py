"""What bounds a connection before there is a request: how many there are, how large a head is, how long it takes.

uvicorn waits without limit for the head of a request, keeps all of it, and for a caller who does not read. So that few
bytes cannot hold much of the server for long, its protocol is narrowed here; what is sent too slowly or too much is
told so, as a problem document, and the connection is closed.
"""

import asyncio
import uuid
from http import HTTPStatus
from typing import Any, ClassVar, Final

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.api.http import problems, security_headers
from app.api.http.disconnects import CONNECTION, EXTENSION, ClientConnection

MAX_HEAD_BYTES: Final = 32 * 1024  # request line and headers
MAX_HEADERS: Final = 100
HEAD_S: Final = 10.0  # from the connection, or the answer before, until the head is here
MAX_PIPELINED: Final = 16  # requests that wait for the answers before theirs: then no more is read
PIECE: Final = 2048  # bytes parsed at once, so that few requests more are found in what came with them
UNREAD_S: Final = 60.0  # that a caller may leave an answer unread
VERSIONS: Final = ("1.0", "1.1")
UPGRADING: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})
_TOO_LARGE: Final = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"expected a head of at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} fields, found more",
)


class _Refused(Exception):  # it ends the parsing and no more
    """The head is not taken."""


class _Flow(FlowControl):
    """Uvicorn's, which many may tell to go on reading, but no more than there is room for."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class Bounded(HttpToolsProtocol):
    """Uvicorn's protocol with bounds."""

    max_connections: ClassVar[int]  # open at once
    head_s: ClassVar[float]
    unread_s: ClassVar[float]
    flow: _Flow

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = self._in_body = False
        self._begun = 0  # requests, in what came last
        self._head_bytes = 0  # parsed
        self._fed_bytes = 0  # parsed or not
        self._fault = (HTTPStatus.BAD_REQUEST, "the request is no HTTP")
        self._refusal: tuple[HTTPStatus, str] | None = None  # the last answer, which comes after those under way
        self._held = b""  # not parsed before there is room for its requests
        self._answered: RequestResponseCycle | None = None
        self._late: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Take one connection, or refuse it."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._client = ClientConnection(self.flow.resume_reading)
        if len(self.connections) > self.max_connections:
            self._close(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", {"Retry-After": "1"})
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        for timer in (self._late, self._unread):
            if timer:
                timer.cancel()
        super().connection_lost(exc)
        if self._answered:  # uvicorn tells the request that came last, which may wait for this one's answer
            self._answered.disconnected = True
            self._answered.message_event.set()
        self._client.disconnect()

    def data_received(self, data: bytes) -> None:
        """Parse what came, as long as there is room for its requests."""
        self._unset_keepalive_if_required()
        data = self._held + data
        self._held, self.flow.full = b"", False
        for start in range(0, len(data), PIECE):
            if self.transport.is_closing() or self._refusal:
                return
            if len(self.pipeline) >= MAX_PIPELINED:
                self._held, self.flow.full = data[start:], True
                self.flow.pause_reading()
                return
            self._parse(data[start : start + PIECE])

    def _parse(self, data: bytes) -> None:
        idle, self._begun = not self._in_head and not self._in_body, 0
        self._feed(data)
        if self._in_head and self._begun == idle:  # nothing but head; what is no whole line is not parsed yet
            self._fed_bytes += len(data)
        if self._in_head and self._fed_bytes > MAX_HEAD_BYTES and not self._refusal and not self.transport.is_closing():
            self._close(*_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {CONNECTION: self._client}}
        self._in_head = self._client.is_sending = True
        self._begun += 1
        self._head_bytes = self._fed_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its fields; a trailer, which comes when the request is under way and can't be checked, is dropped."""
        if self._in_head:
            super().on_header(name, value)
        self._count(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Its head is here."""
        self._in_head = False
        if self.parser.get_http_version() not in VERSIONS:  # 0.9 has neither a status nor a length
            raise _Refused
        if self.parser.get_method() == b"CONNECT":
            raise _Refused
        if self.parser.should_upgrade():  # the parser stops here, and does not see the body
            return
        self._check_fields()
        if self._late:
            self._late.cancel()
        super().on_headers_complete()
        self._in_body = True

    def on_message_complete(self) -> None:
        """All of it is here."""
        if self.parser.should_upgrade():  # it is not
            return
        self._in_body = self._client.is_sending = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next may come."""
        super().on_response_complete()
        if self._refusal and not self._is_answering():
            self._close(*self._refusal)
        elif self._held:
            self.data_received(b"")
        if self.cycle.response_complete and not self.transport.is_closing():
            self._expect_head()

    def pause_writing(self) -> None:
        """The caller does not read what is there for it."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.unread_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._unread:
            self._unread.cancel()

    def send_400_response(self, _: str) -> None:
        """Say what is wrong with the request."""
        self._close(*self._fault)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        except httptools.HttpParserUpgrade as upgrade:
            (rest,) = upgrade.args
            self._feed(self._without_upgrade() + data[rest:])

    def _check_fields(self) -> None:
        """Refuse what says not once whom it asks (RFC 9112, 3.2), or has a coding that we can't undo (6.1)."""
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if hosts != 1 and self.parser.get_http_version() == "1.1":
            self._fault = (HTTPStatus.BAD_REQUEST, f"expected one Host field, found {hosts}")
            raise _Refused
        if b"transfer-encoding" not in names:
            return
        told = b",".join(value for name, value in self.headers if name == b"transfer-encoding")
        codings = [coding.strip().lower() for coding in told.split(b",")]
        if codings[-1] == b"chunked" and len(codings) > 1:
            self._fault = (HTTPStatus.NOT_IMPLEMENTED, "expected no transfer coding but chunked")
            raise _Refused

    def _is_answering(self) -> bool:
        return self._answered is not None and not self._answered.response_complete

    def _without_upgrade(self) -> bytes:
        """The head once more, for a new parser, now without the wish for another protocol (RFC 9110, 7.8).

        The connection ends with the answer: a proxy may think that what follows is not HTTP any more.
        """
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version), b"connection: close"]
        lines += [name + b": " + value for name, value in self.headers if name not in UPGRADING]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's: it comes to nothing
        return b"\r\n".join([*lines, b"", b""])

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(self.head_s, self._give_up)

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._close(HTTPStatus.REQUEST_TIMEOUT, f"expected the head of the request within {self.head_s:g} s")
        else:
            self.transport.close()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._fault = _TOO_LARGE
            raise _Refused

    def _close(self, status: HTTPStatus, detail: str, more: dict[str, str] | None = None) -> None:
        """Close the connection after the answers to what came before; say why, unless in the middle of an answer."""
        if self._in_body and self.pipeline:
            self.pipeline.popleft()  # what is refused is the body of the last, which waits
            self._in_body = False
        if self._is_answering() and not self._in_body:
            self._refusal = (status, detail)
            return
        if not self._is_answering() or not self.cycle.response_started:
            self.transport.write(_answer(status, detail, more or {}))
        self.transport.close()


def bounded(max_connections: int, *, head_s: float = HEAD_S, unread_s: float = UNREAD_S) -> type[Bounded]:
    """A protocol that takes so many connections at once."""
    return type("Bounded", (Bounded,), {"max_connections": max_connections, "head_s": head_s, "unread_s": unread_s})


def _answer(status: HTTPStatus, detail: str, more: dict[str, str]) -> bytes:
    """A problem document, as it goes over the wire."""
    headers = {"Connection": "close", "X-Request-Id": uuid.uuid4().hex, **more}
    problem = problems.problem(problems.blank(status), detail, headers)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in (*problem.raw_headers, *security_headers.HEADERS)]
    return b"\r\n".join([*lines, b"", bytes(problem.body)])
