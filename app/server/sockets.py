"""Listening sockets: TCP over one address family or both, and Unix sockets."""

import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
from pathlib import Path
from typing import Final

from app.errors import SettingsError
from app.settings import Settings

BACKLOG: Final = 2048  # connections waiting to be accepted
UNIX_MODE: Final = 0o666  # the permissions of the folder decide about access
CONNECT_S: Final = 0.01  # longest time of a connection on one machine
SO_ATTACH_FILTER: Final = 26  # Linux
# Classic BPF on a TCP header: drop a segment with SYN and without ACK, accept any other.
DROP_SYN: Final = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 2**32 - 1))


def listen(settings: Settings) -> socket.socket:
    """Listen on the host and port, or the Unix socket; `::` takes IPv4 too. Raise SettingsError if that fails."""
    try:
        if settings.unix_socket:
            return _listen_unix(settings.unix_socket)
        return socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=BACKLOG,
            dualstack_ipv6=settings.host == "::" and socket.has_dualstack_ipv6(),
        )
    except OSError as error:
        raise SettingsError(f"{settings.url}: can't listen: {error.strerror or error}") from error


def stop_handshakes(listening: socket.socket) -> bool:
    """Let no further connection start, if possible; those that clients have opened can still be accepted.

    A TCP client that connects from now on retries after a second, and is refused if the socket is closed by then.
    """
    if listening.family == socket.AF_UNIX:
        Path(listening.getsockname()).unlink(missing_ok=True)
        return True
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in DROP_SYN))
    address = struct.pack("HL", len(DROP_SYN), ctypes.addressof(program))
    try:
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, address)
    except OSError:  # no Linux, or one that does not allow it
        return False
    return True


def fill_backlog(listening: socket.socket) -> socket.socket | None:
    """Fill the backlog of a TCP socket with one connection of our own, so that the kernel drops every new one.

    Return the connection, which ends with the socket, or None if that of a client was faster and must be accepted.
    """
    listening.listen(0)  # room for one
    connection = socket.socket(listening.family)
    connection.setblocking(False)
    host, port, *_ = listening.getsockname()
    connection.connect_ex(({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port))  # noqa: S104
    _, connected, _ = select.select([], [connection], [], CONNECT_S)
    if connected and not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return connection
    connection.close()
    return None


def _listen_unix(path: Path) -> socket.socket:
    """Listen on a Unix socket, in place of one that a killed server left."""
    listening = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            with contextlib.suppress(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            path.unlink()
        listening.bind(str(path))
        path.chmod(UNIX_MODE)
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
