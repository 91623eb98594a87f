"""A server of the published models, for clients in an environment of their own: see `make test-clients`."""

import hashlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
SECRET = "secret"
# The environment of the other tests has no such clients.
collect_ignore_glob = [] if importlib.util.find_spec("tritonclient") else ["test_*.py"]


class Server(NamedTuple):
    """A running server."""

    url: str
    key: str


@contextmanager
def serving(*options: str) -> Iterator[str]:
    """Run a server; yield its address."""
    command = [os.environ.get("SERVER_PYTHON", sys.executable), "-m", "app", "serve", "--port", "0", *options]
    process = subprocess.Popen(
        [*command, "--store", str(ROOT / "models_store")], stderr=subprocess.PIPE, encoding="utf-8", cwd=ROOT
    )
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if announced := re.search(r"(http://\S+) serves", line):
            break
    else:
        pytest.fail(f"the server exited before it was ready: {lines}")
    drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)  # a full pipe would block it
    yield announced[1]
    process.send_signal(signal.SIGTERM)
    process.wait()
    drain.wait()
    process.stderr.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"reader predict - sha256:{hashlib.sha256(SECRET.encode()).hexdigest()}\n")
    keys.chmod(0o600)
    with serving("--api-keys-file", str(keys)) as url:
        yield Server(url, SECRET)


@pytest.fixture(scope="session")
def open_server() -> Iterator[Server]:
    """A server without keys, for a client that sends none."""
    with serving() as url:
        yield Server(url, "")
