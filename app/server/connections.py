"""The connections of one server process: limits in total and per address, and closing without a lost response."""

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final, Protocol, TypeAlias

from app.api.http import rate_limits
from app.api.http.authorization import address

MAX_PROBES: Final = 16
MIN_IDLE_S: Final = 5.0  # a connection idle for this long is closed for a new one over a limit
LINGER_S: Final = 2.0  # longest wait for a client to close its end
CHECK_S: Final = 0.02  # interval of the checks for a disconnect after a half-close
STATUS_START: Final = b"HTTP/1.1 "  # of every response

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network


class Connection(Protocol):
    """A client's connection, as `ConnectionLimits` uses it."""

    peer: str  # address, empty for a Unix socket

    @property
    def idle_s(self) -> float:
        """Seconds since its last response; 0 before the first and during a request."""
        ...

    def close_if_idle(self) -> bool:
        """Close the connection unless a request is in progress or has arrived; return whether it is closed."""
        ...

    def reject(self) -> None:
        """Answer that there are too many connections, and close."""
        ...


class ConnectionLimits:
    """The open connections and their limits: `total`, and `per_address` (an IPv6 /64 network counts as one).

    Clients of the `exempt` networks (proxies) and of a Unix socket are limited in total only. A connection over a limit
    replaces the one that has been idle longest, for MIN_IDLE_S at least. Without one it gets one of MAX_PROBES, where
    probes are answered and nothing else; the oldest of these is closed for a newer one.
    """

    def __init__(self, total: int, per_address: int | None = None, exempt: Sequence[str] = ()) -> None:
        self._total = total
        self._per_address = per_address or total
        self._exempt = tuple(ipaddress.ip_network(network) for network in exempt)
        self._addresses: dict[Connection, str] = {}
        self._counts = Counter[str]()
        self._probes: dict[Connection, None] = {}  # oldest first
        self.draining = False  # the server shuts down: every response closes its connection

    def admit(self, connection: Connection) -> bool:
        """Admit a new connection; return False if it may only be a health probe."""
        found = _limited_address(connection.peer, self._exempt)
        full = found if found and self._counts[found] >= self._per_address else None
        if (full or len(self._addresses) >= self._total) and not self._close_idle(full):
            self._probes[connection] = None
            if len(self._probes) > MAX_PROBES:
                next(iter(self._probes)).reject()
            return False
        self._addresses[connection] = found
        self._counts[found] += 1
        return True

    def release(self, connection: Connection) -> None:
        """Forget a connection that closes."""
        self._probes.pop(connection, None)
        if (found := self._addresses.pop(connection, None)) is not None:
            self._counts[found] -= 1
            if not self._counts[found]:
                del self._counts[found]

    def _close_idle(self, only: str | None) -> bool:
        """Close the connection that has been idle longest, of one address or of all."""
        idle = [(one.idle_s, one) for one, found in self._addresses.items() if only in (None, found)]
        for idle_s, connection in sorted(idle, key=lambda each: each[0], reverse=True):
            if idle_s < MIN_IDLE_S:
                break
            if connection.close_if_idle():
                self.release(connection)
                return True
        return False


class LingeringTransport:
    """The writing side of a connection, closed so that the client receives its last response (RFC 9112, 9.6).

    `close` sends the end of the stream and leaves the connection to the client for LINGER_S, which the protocol reads
    and discards: a kernel with unread data would reset the connection, and the client could lose the response.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, abort_s: float) -> None:
        """`abort_s` limits the time of a close in which the client does not read."""
        self._transport = transport
        self._loop = loop
        self._abort_s = abort_s
        self._ended = self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self.write: Callable[[bytes], None] = transport.write

    @property
    def socket(self) -> Any:
        """The connection's socket, for its options alone."""
        return self._transport.get_extra_info("socket")

    def is_closing(self) -> bool:
        """Return whether the connection is closed or being closed."""
        return self._closed or self._transport.is_closing()

    def close(self) -> None:
        """Close the connection after what has been written."""
        if self.is_closing():
            return
        self._closed = True
        self.write = lambda _: None
        if self._ended:
            self._transport.close()
        else:
            self._transport.write_eof()
            self._transport.resume_reading()
            self._linger(self._loop.time() + self._abort_s)

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def lost(self) -> None:
        """Stop the timers: the connection is closed."""
        self._closed = True
        if self._timer:
            self._timer.cancel()

    def end(self) -> None:
        """Record that the client sends no more: `close` need not wait."""
        self._ended = True

    def watch(self, *, started: bool) -> None:
        """Abort the connection as soon as a client that sends no more turns out not to read either.

        Both look alike until something is sent, so the first bytes of the response are, unless it has `started`: a
        client that has closed its socket answers them with a reset.
        """
        if not started:
            self.write(STATUS_START)
            self.write = self._write_rest
        self._check()

    def _write_rest(self, response: bytes) -> None:
        self.write = self._transport.write
        self.write(response[len(STATUS_START) :])

    def _check(self) -> None:
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.abort()
        elif not self._closed:
            self._timer = self._loop.call_later(CHECK_S, self._check)

    def _linger(self, abort_at: float) -> None:
        def end() -> None:
            if self._transport.get_write_buffer_size() and self._loop.time() < abort_at:
                self._linger(abort_at)
            else:
                self.abort()

        self._timer = self._loop.call_later(LINGER_S, end)


@lru_cache(1024)
def _limited_address(peer: str, exempt: tuple[Network, ...]) -> str:
    """Return the address that a connection is counted by, or an empty one if it is limited in total only."""
    try:
        found = address(peer)
    except ValueError:  # a Unix socket
        return ""
    return "" if any(found in network for network in exempt) else rate_limits.client_id(None, (peer, 0))
