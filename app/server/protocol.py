"""Connection limits below HTTP: number of connections, size of a request head, timeouts of slow clients.

uvicorn has no timeout for a request head, for a body or for a client that does not read, and no limit for the size of a
head. The protocol here adds them against slowloris attacks. A request over a limit gets a problem document, and its
connection is closed.
"""

import asyncio
import fcntl
import termios
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Final

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.api.http.disconnects import CONNECTION, EXTENSION, ClientConnection
from app.server import heads
from app.server.connections import ConnectionLimits, LingeringTransport
from app.server.heads import MAX_HEAD_BYTES, MAX_HEADERS, Rejection

HEAD_S: Final = 10.0  # from the connection, or from the first byte of a later request, to the end of the head
PROBE_S: Final = 1.0  # the same for a connection over the limits
BODY_S: Final = 10.0  # in which a body advances at MIN_BODY_RATE
MIN_BODY_RATE: Final = 512  # bytes a second
MAX_PIPELINED: Final = 16  # requests waiting for earlier responses; reading then pauses
CHUNK_BYTES: Final = 2048  # parsed at once, so that MAX_PIPELINED is exceeded by few requests
WRITE_TIMEOUT_S: Final = 60.0  # longest time that a client may not read its response
UPGRADE_FIELDS: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})
PROBES: Final = (b"/livez", b"/readyz", b"/metrics")  # answered over the limits


class _Flow(FlowControl):
    """Uvicorn's flow control, which does not resume reading while the pipeline is full."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class LimitedProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP/1.1 protocol with limits for heads, pipelines, connections and slow clients."""

    limits: ClassVar[ConnectionLimits]
    head_s: ClassVar[float]
    body_s: ClassVar[float]
    write_timeout_s: ClassVar[float]
    flow: _Flow
    transport: LingeringTransport  # type: ignore[assignment]  # it has the methods that uvicorn calls

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.peer = ""
        self._in_head = self._in_body = self._half_closed = False
        self._started = 0  # requests that started in the last chunk
        self._head_bytes = 0  # parsed
        self._fed_bytes = 0  # received, parsed or not
        self._recent_bytes = 0  # received since the timer started
        self._final_error: Rejection | None = None  # sent after the responses in flight, then the connection closes
        self._unparsed = b""  # received while the pipeline was full
        self._body = list[bytes]()  # pieces parsed, not yet passed on
        self._running: RequestResponseCycle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Accept the connection, for health probes alone if it is over a limit."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self.transport = LingeringTransport(transport, self.loop, self.write_timeout_s)
        self._client = ClientConnection(self.flow.resume_reading)
        if self.client:
            self.peer = self.client[0].removeprefix("::ffff:")  # an IPv4 client of a dual-stack socket
            self.client = (self.peer, self.client[1])
        self._may_only_probe = not self.limits.admit(self)
        if self._may_only_probe:
            self.app_state["metrics"].count_limited_connection()
        self._start_timer(min(self.head_s, PROBE_S) if self._may_only_probe else self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers and disconnect the running request."""
        self._stop_timer()
        self._unset_keepalive_if_required()
        if self._write_timer:
            self._write_timer.cancel()
        self.transport.lost()
        self.limits.release(self)
        super().connection_lost(exc)
        self._disconnect()

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio's
        """Return whether to keep the connection open: its client sends no more, but reads the responses in flight.

        A stream that has started is closed: a client that reads one keeps its side open, and one that has closed the
        connection would be noticed at the next part only.
        """
        self.transport.end()
        self._half_closed = True
        if self._in_head or self._in_body:
            self._close(heads.invalid("expected a complete request, found the end of the connection within it"))
        if self.transport.is_closing() or self._running is None or self._running.response_complete:
            return False
        if self._running.response_started and self._running.chunked_encoding:
            return False
        self.transport.watch(started=self._running.response_started)
        return True

    def shutdown(self) -> None:
        """Close the connection, after its responses in flight if any."""
        if self._in_head:
            self._close(heads.unavailable("the server is shutting down"))
        elif not self.close_if_idle() and self.cycle:
            self.cycle.keep_alive = False

    @property
    def idle_s(self) -> float:
        """Seconds since the last response; 0 before the first and during a request."""
        timer = self.timeout_keep_alive_task
        return self.timeout_keep_alive - timer.when() + self.loop.time() if timer else 0.0

    def close_if_idle(self) -> bool:
        """Close the connection unless a request is in progress or has arrived; return whether it is closed."""
        if self._in_head or self._in_body or self._is_responding() or self._has_unread():
            return False
        self.transport.close()
        return True

    def reject(self) -> None:
        """Answer that there are too many connections, and close."""
        self.limits.release(self)
        self._close(heads.unavailable("too many connections"))

    def data_received(self, data: bytes) -> None:
        """Parse the data, as far as the pipeline has room."""
        self._unset_keepalive_if_required()
        self._recent_bytes += len(data)
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
        if (self._in_head or self._in_body) and not self._timer:
            self._start_timer(self.head_s if self._in_head else self.body_s)

    def _parse(self, data: bytes) -> None:
        idle, self._started = not self._in_head and not self._in_body, 0
        self._feed(data)
        if self._in_head and self._started == idle:  # all of the chunk is head; an incomplete line is not parsed yet
            self._fed_bytes += len(data)
            if self._fed_bytes > MAX_HEAD_BYTES and not self._final_error and not self.transport.is_closing():
                self._close(heads.too_large())

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
        if self.parser.get_method() == b"CONNECT":
            raise heads.invalid()
        if self.parser.should_upgrade():  # the parser stops here, before the body
            return
        version = self.parser.get_http_version()
        heads.require_fields(version, self.headers)
        self.expect_100_continue &= version != "1.0"  # whose clients would take 100 for the response (RFC 9110, 10.1.1)
        if not self.url.startswith(b"/"):
            self.url = heads.origin_form(self.url, self.headers)
        if self._may_only_probe and not self.url.partition(b"?")[0].endswith(PROBES):
            raise heads.unavailable("too many connections")
        self._stop_timer()
        super().on_headers_complete()
        if self._may_only_probe or self.limits.draining:
            self.cycle.keep_alive = False
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """Gather a piece of the request body: each chunk of its transfer coding, perhaps of one byte, is one."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Finish the request body."""
        if self.parser.should_upgrade():  # the body was not parsed
            return
        self._pass_body_on()
        self._in_body = self._client.is_sending = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Continue with the next pipelined request, or wait for one."""
        super().on_response_complete()
        if self._final_error and not self._is_responding():
            self._close(self._final_error)
        elif self._unparsed:
            self.data_received(b"")
        elif self._half_closed and not self._is_responding():
            self.transport.close()
        elif self._in_body and self.cycle.response_complete:  # the rest of the body is discarded
            self._stop_timer()
            self._start_timer(self.head_s)

    def pause_writing(self) -> None:
        """Start the write timeout: the client does not read."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop the write timeout."""
        super().resume_writing()
        if self._write_timer:
            self._write_timer.cancel()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
            self._pass_body_on()
        except httptools.HttpParserError as error:
            self.logger.warning("Invalid HTTP request received.")
            raised = error.__context__  # by one of the callbacks
            self._close(raised if isinstance(raised, Rejection) else heads.invalid())
        except httptools.HttpParserUpgrade as upgrade:
            (rest,) = upgrade.args
            self._feed(self._without_upgrade() + data[rest:])

    def _pass_body_on(self) -> None:
        if self._body:
            super().on_body(b"".join(self._body))
            self._body.clear()

    def _is_responding(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _has_unread(self) -> bool:
        """Return whether the kernel holds data that the event loop has not read yet."""
        unread = fcntl.ioctl(self.transport.socket.fileno(), termios.FIONREAD, bytes(4))
        return any(unread)

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

    def _start_timer(self, seconds: float) -> None:
        self._recent_bytes = 0
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        """Close the connection of a slow client, or wait on while the server is what delays the request."""
        self._timer = None
        if self.transport.is_closing():
            return
        delayed = self.flow.read_paused or (self._in_body and self.cycle.waiting_for_100_continue)
        if self._may_only_probe:
            self._close(heads.unavailable("too many connections"))
        elif self._in_head and not delayed:
            detail = f"expected the head of the request within {self.head_s:g} s"
            self._close(Rejection(HTTPStatus.REQUEST_TIMEOUT, detail))
        elif not self._is_responding():
            self.transport.close()
        elif not delayed and self._recent_bytes < self.body_s * MIN_BODY_RATE:
            found = f"found {self._recent_bytes} in {self.body_s:g} s"
            detail = f"body: expected at least {MIN_BODY_RATE} bytes a second, {found}"
            self._close(Rejection(HTTPStatus.REQUEST_TIMEOUT, detail))
        else:
            self._start_timer(self.body_s)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            raise heads.too_large()

    def _close(self, error: Rejection) -> None:
        """Send an error after the responses in flight, unless one has started, and close the connection."""
        if self._in_body and self.pipeline:
            self.pipeline.popleft()  # the rejected body is that of the last request, which has not started
            self._in_body = False
        if self._is_responding() and not self._in_body:
            self._final_error = error
            return
        if not (self._in_body and self._running and self._running.response_started):
            self.transport.write(error.response())
        self.transport.close()
        self._disconnect()

    def _disconnect(self) -> None:
        """Disconnect the running request; uvicorn disconnects the last one only, which may wait in the pipeline."""
        if self._running:
            self._running.disconnected = True
            self._running.message_event.set()
        self._client.disconnect()


def limited(
    max_connections: int,
    *,
    per_address: int | None = None,
    exempt: Sequence[str] = (),
    head_s: float = HEAD_S,
    body_s: float = BODY_S,
    write_timeout_s: float = WRITE_TIMEOUT_S,
) -> type[LimitedProtocol]:
    """Return a protocol class with these limits: connections as `ConnectionLimits` counts them, timeouts in seconds."""
    limits = ConnectionLimits(max_connections, per_address, exempt)
    timeouts = {"head_s": head_s, "body_s": body_s, "write_timeout_s": write_timeout_s}
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits, **timeouts})
