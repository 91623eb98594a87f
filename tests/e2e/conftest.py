"""The real program as a separate process."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import bundle as bundles
from app.__main__ import main

Command = Callable[..., tuple[Any, str, str]]

# Settings of the developer's environment are removed.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.upper().startswith("SEQSERVE_")}


def seqserve(*arguments: str | Path, text: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command; `text` is its standard input."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        input=text,
        capture_output=True,
        encoding="utf-8",
        env=ENVIRONMENT | environment,
        check=False,
    )


@contextmanager
def serving(
    store: Path, log: list[str] | None = None, *, port: int | str = 0, **environment: str
) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A server of `store`, ready, and an HTTP client; `log` receives its later log lines."""
    command: list[str | Path] = [sys.executable, "-m", "app", "serve", "--store", store]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, encoding="utf-8", env=ENVIRONMENT | {"SEQSERVE_PORT": "0"} | environment
    )
    assert process.stderr is not None
    reading: threading.Thread | None = None
    try:
        for line in process.stderr:
            if announced := re.search(r"((?:http|unix):\S+) serves", line):
                break
        else:
            pytest.fail("the server exited before it was ready")
        reading = threading.Thread(target=(log if log is not None else []).extend, args=(process.stderr,))
        reading.start()  # a full pipe would block the server
        scheme, _, path = announced[1].partition(":")
        transport = httpx.HTTPTransport(uds=path) if scheme == "unix" else None
        with httpx.Client(base_url=announced[1], timeout=60, transport=transport) as client:
            yield client, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
        if reading:
            reading.join()
        process.stderr.close()


@pytest.fixture(scope="session")
def client(tiny_store: Path) -> Iterator[httpx.Client]:
    with serving(tiny_store) as (client, _):
        yield client


@pytest.fixture
def damaged_store(tiny_store: Path, tmp_path: Path) -> Path:
    """A store of `tiny`, and of `broken`, which has a flipped bit."""
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    tiny = bundles.read(store / "tiny" / bundles.current(store, "tiny"))
    manifest = tiny.manifest.model_copy(update={"files": {}, "model": "broken", "version": "1"})
    bundles.publish(store, manifest, {name: tiny.path(name) for name in tiny.manifest.files})
    vocabulary = store / "broken" / "1" / "vocabulary.txt"
    content = bytearray(vocabulary.read_bytes())
    content[0] ^= 1
    vocabulary.write_bytes(content)
    return store


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, with its patches; return status, output and errors."""

    def run(*arguments: object) -> tuple[Any, str, str]:
        monkeypatch.setattr("sys.argv", ["seqserve", *map(str, arguments)])
        with pytest.raises(SystemExit) as exited:
            main()
        return (exited.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def store(store: Path) -> Path:
    """A store with versions 1 (current), 2 and 3 (damaged) of `tiny`."""
    shutil.copytree(store / "tiny" / "2", store / "tiny" / "3")
    manifest = store / "tiny" / "3" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": "3"}))
    checksum = hashlib.sha256(manifest.read_bytes()).hexdigest()
    manifest.with_name("manifest.sha256").write_text(f"{checksum}  manifest.json\n")
    (store / "tiny" / "3" / "vocabulary.txt").write_bytes(b"the\n")
    return store
