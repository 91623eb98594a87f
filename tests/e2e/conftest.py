"""The real program, as a process of its own."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

# What a developer has set changes no test.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.upper().startswith("SEQSERVE_")}


def seqserve(*arguments: str | Path, text: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; `text` is its standard input."""
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
    store: Path, log: list[str] | None = None, **environment: str
) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A server of `store` that has loaded its models, and a client of it; `log` gets the lines that it writes then."""
    command: list[str | Path] = [sys.executable, "-m", "app", "serve", "--port", "0", "--store", store]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8", env=ENVIRONMENT | environment)
    assert process.stderr is not None
    reading: threading.Thread | None = None
    try:
        for line in process.stderr:
            if announced := re.search(r"(http://\S+) serves", line):
                break
        else:
            pytest.fail("the server ended before it served")
        reading = threading.Thread(target=(log if log is not None else []).extend, args=(process.stderr,))
        reading.start()  # else the server would wait once the pipe is full
        with httpx.Client(base_url=announced[1], timeout=60) as client:
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
    """`tiny`, and `broken`, in one of whose files a bit is flipped."""
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    shutil.copytree(tiny_store / "tiny", store / "broken")
    vocabulary = store / "broken" / "1" / "vocabulary.txt"
    content = bytearray(vocabulary.read_bytes())
    content[0] ^= 1
    vocabulary.write_bytes(content)
    return store
