import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest

from tests.bench.serving import wrk
from tests.bench.serving.workloads import Workload

WORKLOAD = Workload("typing", "next-word", "application/json", [b'{"text": "a\\n"}', b"\x00\xff", b"\r\n"])
TOLD = """Running 1s test @ http://127.0.0.1:1
  1 threads and 2 connections

{"requests": 120, "microseconds": 1500000, "refused": 20, "broken": 3, "p50_us": 1500.000000, "p99_us": 25000.5}
"""


class Remembering(http.server.BaseHTTPRequestHandler):
    """Answers all requests with 200, and keeps them."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.path, self.headers["Content-Type"], body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def remembering() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server's URL, and the requests that it has had."""
    seen: list[tuple[str, str, bytes]] = []
    handler = type("Handler", (Remembering,), {"seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


def test_what_wrk_tells_is_read() -> None:
    load = wrk.read(TOLD)
    assert load == wrk.Load(answered=100, failed=23, seconds=1.5, p50_ms=1.5, p99_ms=25.0005)


@pytest.mark.parametrize("told", ["", "unable to connect to 127.0.0.1:1 Connection refused\n"])
def test_output_without_figures_is_an_error_that_shows_it(told: str) -> None:
    with pytest.raises(RuntimeError, match=r"expected a last line of JSON, found"):
        wrk.read(told)


@pytest.mark.skipif(which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_the_bodies_in_their_order_from_where_it_is_told(
    tmp_path: Path, remembering: tuple[str, list[tuple[str, str, bytes]]]
) -> None:
    url, seen = remembering
    wrk.write(WORKLOAD, tmp_path / "typing")
    load = wrk.run(url, WORKLOAD, tmp_path / "typing", connections=1, seconds=1, start=4)
    assert load.answered > 0
    assert load.failed == 0
    expected = [("/next-word", "application/json", WORKLOAD.bodies[place]) for place in (1, 2, 0, 1)]
    assert seen[:4] == expected


@pytest.mark.skipif(which("wrk") is None, reason="wrk is not installed")
def test_a_server_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    wrk.write(WORKLOAD, tmp_path / "typing")
    with pytest.raises(RuntimeError, match="wrk"):
        wrk.run("http://127.0.0.1:1", WORKLOAD, tmp_path / "typing", connections=1, seconds=1, start=0)
