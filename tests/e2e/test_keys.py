"""API keys, rate limits, logs and traces of the real program."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.e2e.conftest import Command, seqserve, serving

REDIS = shutil.which("redis-server")
TEXT = {"text": "the company said profits"}


def new_key(file: Path, name: str, *options: str) -> dict[str, str]:
    """Create a key and return its Authorization header."""
    run = seqserve("keys", "new", name, *options, SEQSERVE_API_KEYS_FILE=str(file))
    assert (run.returncode, run.stderr) == (0, "")
    assert re.fullmatch(r"seqserve_[\w-]{43}\n", run.stdout)
    return {"Authorization": f"Bearer {run.stdout.strip()}"}


def test_keys_are_required_and_a_key_created_later_is_accepted(tiny_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    reader, late = new_key(file, "reader"), new_key(file, "late", "--expires", "2999-01-01")
    file.write_text(file.read_text().replace("2999", "2020"))  # as if years had passed
    log: list[str] = []
    with serving(tiny_store, log, SEQSERVE_API_KEYS_FILE=str(file)) as (client, _):
        statuses = [client.post("/next-word", json=TEXT, headers=key).status_code for key in ({}, reader, late)]
        assert client.get("/metrics", headers=reader).status_code == 403
        operator = new_key(file, "operator", "--scope", "admin")
        while client.get("/metrics", headers=operator).status_code == 401:
            pass  # at most a second
        assert client.get("/metrics", headers=operator).status_code == 200
    assert statuses == [401, 200, 401]
    lines = [line for line in map(json.loads, log) if line["message"] == "request"]
    answered = lines[1]
    assert (answered["key"], answered["model"], answered["tokens"]) == ("reader", "tiny", 4)
    assert (answered["cached"], answered["status"], answered["route"]) == (4, 200, "/next-word")
    assert 0 <= answered["queue_s"] + answered["engine_s"] <= answered["seconds"]
    assert "company" not in "".join(log)
    assert "seqserve_" not in "".join(log)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["new", "a"], "expected SEQSERVE_API_KEYS_FILE or --file"),
        (["new", "a b", "--file", "keys"], "expected a name"),
        (["new", "a", "--file", "keys", "--expires", "soon"], "--expires: expected a date"),
        (["new", "a", "--file", "keys", "--expires", "2020-01-01"], "expires: expected a time in the future"),
        (["new", "a", "--file", "/nowhere/keys"], "can't be written"),
    ],
)
def test_an_invalid_key_request_is_one_line_on_stderr(command: Command, arguments: list[str], expected: str) -> None:
    status, output, errors = command("keys", *arguments)
    assert (status, output) == (2, "")
    assert expected in errors
    assert errors.count("\n") == 1


def test_a_server_with_an_unusable_setting_does_not_start(tiny_store: Path) -> None:
    run = seqserve("serve", "--port", "0", "--store", tiny_store, SEQSERVE_API_KEYS_FILE="/nowhere/keys")
    assert run.returncode == 2
    assert "the keys can't be read" in run.stderr


def test_the_text_log_format_is_readable(tiny_store: Path) -> None:
    log: list[str] = []
    with serving(tiny_store, log, SEQSERVE_LOG_FORMAT="text") as (client, _):
        client.post("/next-word", json=TEXT)
    (line,) = log
    assert re.search(r" INFO app.api.http.middleware: request id=\w{32} method=POST route=/next-word status=200 ", line)


def test_only_a_trusted_proxy_sets_the_client_address(tiny_store: Path) -> None:
    forwarded = {"X-Forwarded-For": "10.1.2.3"}
    for proxies, statuses in (("127.0.0.1", [200, 200]), ("", [200, 429])):
        environment = {"SEQSERVE_RATE_LIMIT": "1/hour", "SEQSERVE_TRUSTED_PROXIES": proxies}
        with serving(tiny_store, None, **environment) as (client, _):
            first = client.post("/next-word", json=TEXT)
            second = client.post("/next-word", json=TEXT, headers=forwarded)
        assert [first.status_code, second.status_code] == statuses


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    """The URL of a temporary Redis server."""
    if not REDIS:
        pytest.skip("there is no redis-server here")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [REDIS, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout
        for line in process.stdout:
            if "Ready to accept connections" in line:
                break
        yield f"redis://127.0.0.1:{port}"
        process.terminate()


def test_two_servers_share_rate_limits_in_redis_and_fall_back_to_their_own(tiny_store: Path, redis: str) -> None:
    environment = {"SEQSERVE_RATE_LIMIT": "3/hour", "SEQSERVE_RATE_STORAGE": redis}
    log: list[str] = []
    with serving(tiny_store, None, **environment) as (one, _), serving(tiny_store, log, **environment) as (other, _):
        answers = [client.post("/next-word", json=TEXT) for client in (one, other, one, other)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[1].headers["ratelimit"].startswith('"default";r=1;t=')
        assert 3590 <= int(answers[3].headers["retry-after"]) <= 3601
        with socket.create_connection(("127.0.0.1", int(redis.rpartition(":")[2]))) as connection:
            connection.sendall(b"SHUTDOWN NOSAVE\r\n")
            connection.recv(1)  # it has exited
        assert [other.post("/next-word", json=TEXT).status_code for _ in range(4)] == [200, 200, 200, 429]
        assert "seqserve_rate_storage_errors_total 0" not in other.get("/metrics").text
    assert "counts alone" in "".join(log)


class Collector(BaseHTTPRequestHandler):
    """A collector that records exported traces."""

    received: list[tuple[str, bytes]]

    def do_POST(self) -> None:  # name given by the base class
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append((self.path, content))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def test_traces_are_exported_before_the_program_exits(tiny_store: Path) -> None:
    pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `traces` is not installed")
    Collector.received = []
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        thread = Thread(target=collector.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        try:
            with serving(tiny_store, SEQSERVE_TRACES_ENDPOINT=endpoint) as (client, _):
                answer: httpx.Response = client.post("/next-word", json=TEXT)
        finally:
            collector.shutdown()
            thread.join()
    trace = bytes.fromhex(answer.headers["traceparent"].split("-")[1])
    paths, contents = zip(*Collector.received, strict=True)
    assert set(paths) == {"/v1/traces"}
    assert trace in b"".join(contents)
    assert b"company" not in b"".join(contents)
