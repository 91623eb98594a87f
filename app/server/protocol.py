"""Connection limits below HTTP: number of connections, size of a request head, read and write timeouts.

uvicorn has no timeout for a request head or for a client that does not read, and no limit for the size of a head. The
protocol here adds them against slowloris attacks. A request over a limit gets a problem document, and its connection
is closed.
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
HEAD_S: Final = 10.0  # from the connection or the previous response to the end of the head
MAX_PIPELINED: Final = 16  # requests waiting for earlier responses; reading then pauses
CHUNK_BYTES: Final = 2048  # parsed at once, so that MAX_PIPELINED is exceeded by few requests
WRITE_TIMEOUT_S: Final = 60.0  # longest time that a client may not read its response
VERSIONS: Final = ("1.0", "1.1")
UPGRADE_FIELDS: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})
_TOO_LARGE: Final = (
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    f"expected a head of at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} fields, found more",
)


class _Rejected(Exception):  # caught by the parser, which stops
    """The request head is invalid or over a limit."""


class _Flow(FlowControl):
    """Uvicorn's flow control, which does not resume reading while the pipeline is full."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 protocol with limits for heads, pipelines, connections and slow clients."""

    max_connections: ClassVar[int]  # open at once
    head_s: ClassVar[float]
    write_timeout_s: ClassVar[float]
    flow: _Flow

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = self._in_body = False
        self._started = 0  # requests that started in the last chunk
        self._head_bytes = 0  # parsed
        self._fed_bytes = 0  # received, parsed or not
        self._error = (HTTPStatus.BAD_REQUEST, "expected a valid HTTP request")
        self._final_error: tuple[HTTPStatus, str] | None = (
            None  # sent after the responses in flight, then the connection closes
        )
        self._unparsed = b""  # received while the pipeline was full
        self._running: RequestResponseCycle | None = None
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Accept the connection, or reject it at the limit."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._client = ClientConnection(self.flow.resume_reading)
        if len(self.connections) > self.max_connections:
            self._close(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", {"Retry-After": "1"})
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers and disconnect the running request."""
        for timer in (self._head_timer, self._write_timer):
            if timer:
                timer.cancel()
        super().connection_lost(exc)
        if self._running:  # uvicorn disconnects the last request only, which may still wait in the pipeline
            self._running.disconnected = True
            self._running.message_event.set()
        self._client.disconnect()

    def data_received(self, data: bytes) -> None:
        """Parse the data, as far as the pipeline has room."""
        self._unset_keepalive_if_required()
        data = self._unparsed + data
        self._unparsed, self.flow.full = b"", False
        for start in range(0, len(data), CHUNK_BYTES):
            if self.transport.is_closing() or self._final_error:
                return
            if len(self.pipeline) >= MAX_PIPELINED:
                self._unparsed, self.flow.full = data[start:], True
                self.flow.pause_reading()
                return
            self._parse(data[start : start + CHUNK_BYTES])

    def _parse(self, data: bytes) -> None:
        idle, self._started = not self._in_head and not self._in_body, 0
        self._feed(data)
        if self._in_head and self._started == idle:  # all of the chunk is head; an incomplete line is not parsed yet
            self._fed_bytes += len(data)
        if (
            self._in_head
            and self._fed_bytes > MAX_HEAD_BYTES
            and not self._final_error
            and not self.transport.is_closing()
        ):
            self._close(*_TOO_LARGE)

    def on_message_begin(self) -> None:
        """Start a request."""
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {CONNECTION: self._client}}
        self._in_head = self._client.is_sending = True
        self._started += 1
        self._head_bytes = self._fed_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Count a part of the request target."""
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header field; drop a trailer, which arrives after the headers were validated."""
        if self._in_head:
            super().on_header(name, value)
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """Validate the complete head, then start the request."""
        self._in_head = False
        if self.parser.get_http_version() not in VERSIONS:  # HTTP/0.9 responses have neither status nor length
            raise _Rejected
        if self.parser.get_method() == b"CONNECT":
            raise _Rejected
        if self.parser.should_upgrade():  # the parser stops here, before the body
            return
        self._check_fields()
        if self._head_timer:
            self._head_timer.cancel()
        super().on_headers_complete()
        self._in_body = True

    def on_message_complete(self) -> None:
        """Finish the request body."""
        if self.parser.should_upgrade():  # the body was not parsed
            return
        self._in_body = self._client.is_sending = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Continue with the next pipelined request, or wait for one."""
        super().on_response_complete()
        if self._final_error and not self._is_responding():
            self._close(*self._final_error)
        elif self._unparsed:
            self.data_received(b"")
        if self.cycle.response_complete and not self.transport.is_closing():
            self._expect_head()

    def pause_writing(self) -> None:
        """Start the write timeout: the client does not read."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the write timeout."""
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()

    def send_400_response(self, _: str) -> None:
        """Send the error found by the parser."""
        self._close(*self._error)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
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
        """Reject a request without exactly one Host (RFC 9112, 3.2) or with an unknown transfer coding (6.1)."""
        names = [name for name, _ in self.headers]
        hosts = names.count(b"host")
        if hosts != 1 and self.parser.get_http_version() == "1.1":
            self._error = (HTTPStatus.BAD_REQUEST, f"Host: expected one field, found {hosts}")
            raise _Rejected
        if b"transfer-encoding" not in names:
            return
        joined = b",".join(value for name, value in self.headers if name == b"transfer-encoding")
        codings = [coding.strip().lower() for coding in joined.split(b",")]
        if codings[-1] == b"chunked" and len(codings) > 1:
            self._error = (HTTPStatus.NOT_IMPLEMENTED, "Transfer-Encoding: expected no coding but chunked")
            raise _Rejected

    def _is_responding(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _without_upgrade(self) -> bytes:
        """Start a new parser and return the head for it without the Upgrade fields (RFC 9110, 7.8).

        The connection closes after the response: a proxy may take the following bytes for another protocol.
        """
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version), b"connection: close"]
        lines += [name + b": " + value for name, value in self.headers if name not in UPGRADE_FIELDS]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as in uvicorn, which ignores such data
        return b"\r\n".join([*lines, b"", b""])

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_s, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._close(HTTPStatus.REQUEST_TIMEOUT, f"expected the head of the request within {self.head_s:g} s")
        else:
            self.transport.close()

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._error = _TOO_LARGE
            raise _Rejected

    def _close(self, status: HTTPStatus, detail: str, extra: dict[str, str] | None = None) -> None:
        """Send an error after the responses in flight, unless one has started, and close the connection."""
        if self._in_body and self.pipeline:
            self.pipeline.popleft()  # the rejected body is that of the last request, which has not started
            self._in_body = False
        if self._is_responding() and not self._in_body:
            self._final_error = (status, detail)
            return
        if not self._is_responding() or not self.cycle.response_started:
            self.transport.write(_error_response(status, detail, extra or {}))
        self.transport.close()


def limited(
    max_connections: int, *, head_s: float = HEAD_S, write_timeout_s: float = WRITE_TIMEOUT_S
) -> type[LimitedProtocol]:
    """Return a protocol class with these limits: `max_connections` open at once, timeouts in seconds."""
    return type(
        "LimitedProtocol",
        (LimitedProtocol,),
        {"max_connections": max_connections, "head_s": head_s, "write_timeout_s": write_timeout_s},
    )


def _error_response(status: HTTPStatus, detail: str, extra: dict[str, str]) -> bytes:
    """Return a complete HTTP/1.1 response with a problem document."""
    headers = {"Connection": "close", "X-Request-Id": uuid.uuid4().hex, **extra}
    problem = problems.DOCUMENTS.respond(problems.Report(problems.blank(status), detail, headers))
    lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
    lines += [name + b": " + value for name, value in (*problem.raw_headers, *security_headers.HEADERS)]
    return b"\r\n".join([*lines, b"", bytes(problem.body)])
