"""Listening sockets."""

import socket
from pathlib import Path

import pytest

from app.errors import SettingsError
from app.server import sockets
from app.settings import Settings


def test_the_address_of_all_of_ipv6_takes_ipv4_too() -> None:
    with sockets.listen(Settings(host="::", port=0)) as listening:
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, listening.getsockname()[1])):
                connection, _ = listening.accept()
                connection.close()


def test_another_address_of_ipv6_takes_itself_alone() -> None:
    with sockets.listen(Settings(host="::1", port=0)) as listening, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listening.getsockname()[1]))


def test_any_user_may_connect_to_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with sockets.listen(Settings(unix_socket=path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert path.stat().st_mode & 0o777 == 0o666


def test_a_unix_socket_that_a_killed_server_left_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    settings = Settings(unix_socket=tmp_path / "socket")
    sockets.listen(settings).close()
    with (
        sockets.listen(settings),
        pytest.raises(SettingsError, match=f"^unix:{tmp_path}/socket: can't listen: Address already in use$"),
    ):
        sockets.listen(settings)


@pytest.mark.parametrize(("name", "expected"), [("file", "Address already in use"), ("x" * 200, "path too long")])
def test_a_path_that_is_not_for_a_socket_is_an_error(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=expected):
        sockets.listen(Settings(unix_socket=tmp_path / name))
    assert (tmp_path / "file").exists()


def test_open_connections_can_be_accepted_after_handshakes_have_stopped(tmp_path: Path) -> None:
    for settings in (Settings(port=0), Settings(unix_socket=tmp_path / "socket")):
        with sockets.listen(settings) as listening, socket.socket(listening.family) as late:
            early = [socket.socket(listening.family) for _ in range(3)]
            for client in early:
                client.connect(listening.getsockname())
            sockets.stop_handshakes(listening)
            late.settimeout(0.1)
            with pytest.raises((TimeoutError, FileNotFoundError)):
                late.connect(listening.getsockname())
            for client in early:
                accepted, _ = listening.accept()
                accepted.sendall(b"x")
                accepted.close()
                assert client.recv(1) == b"x"
                client.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])  # noqa: S104
def test_a_filled_backlog_takes_no_connection(host: str) -> None:
    with sockets.listen(Settings(host=host, port=0)) as listening, socket.socket(listening.family) as early:
        address = ("::1" if host == "::" else "127.0.0.1", listening.getsockname()[1])
        early.connect(address)
        assert sockets.fill_backlog(listening) is None, "the client's connection is to be accepted first"
        listening.accept()[0].close()
        own = sockets.fill_backlog(listening)
        assert own
        with own, socket.socket(listening.family) as late:
            late.settimeout(0.1)
            with pytest.raises(TimeoutError):
                late.connect(address)
