import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from shutil import which

import pytest

from tests.bench.serving import wrk
from tests.bench.serving.workloads import Workload

WORKLOAD = Workload("typing", "next-word", "application/json", [b'{"text": "a\\n"}', b"\x00\xff", b"\r\n"])
OUTPUT = """Running 1s test @ http://127.0.0.1:1
  1 threads and 2 connections

{"requests": 120, "microseconds": 1500000, "refused": 20, "broken": 3, "p50_us": 1500.000000, "p99_us": 25000.5}
"""


class Recorder(http.server.BaseHTTPRequestHandler):
    """A handler that records requests and answers 200."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.seen.append((self.path, self.headers["Content-Type"], body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def recorder() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """The URL of a server and its recorded requests."""
    seen: list[tuple[str, str, bytes]] = []
    handler = type("Handler", (Recorder,), {"seen": seen})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", seen
        server.shutdown()
        thread.join()


def test_the_output_of_wrk_is_parsed() -> None:
    load = wrk.read(OUTPUT)
    assert load == wrk.Load(answered=100, failed=23, seconds=1.5, p50_ms=1.5, p99_ms=25.0005)


@pytest.mark.parametrize("output", ["", "unable to connect to 127.0.0.1:1 Connection refused\n"])
def test_unparsable_output_is_an_error_that_shows_it(output: str) -> None:
    with pytest.raises(RuntimeError, match=r"expected a last line of JSON, found"):
        wrk.read(output)


@pytest.mark.skipif(which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_the_bodies_in_order_from_the_start_offset(
    tmp_path: Path, recorder: tuple[str, list[tuple[str, str, bytes]]]
) -> None:
    url, seen = recorder
    wrk.write(WORKLOAD, tmp_path / "typing")
    load = wrk.run(url, WORKLOAD, tmp_path / "typing", connections=1, seconds=1, start=4)
    assert load.answered > 0
    assert load.failed == 0
    expected = [("/next-word", "application/json", WORKLOAD.bodies[index]) for index in (1, 2, 0, 1)]
    assert seen[:4] == expected


@pytest.mark.skipif(which("wrk") is None, reason="wrk is not installed")
def test_an_unreachable_server_is_an_error(tmp_path: Path) -> None:
    wrk.write(WORKLOAD, tmp_path / "typing")
    with pytest.raises(RuntimeError, match="wrk"):
        wrk.run("http://127.0.0.1:1", WORKLOAD, tmp_path / "typing", connections=1, seconds=1, start=0)
