"""The server in a container of the strict kind: a random user without a home, on a read-only file system."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.e2e.conftest import ENVIRONMENT

ROOT: Final = Path(__file__).parents[2]
# A namespace with one user and group, unknown to the system, and every mounted file system read-only.
CONFINED: Final = (
    *("unshare", "--user", "--map-user=12345", "--map-group=12345", "--keep-caps", "--mount", "sh", "-c"),
    'mount -o remount,bind,ro / && exec setpriv --inh-caps=-all --ambient-caps=-all "$@"',
    "sh",
)


def confine() -> bool:
    """Return whether this machine allows such namespaces."""
    try:
        run = subprocess.run([*CONFINED, "touch", "/tmp/written"], capture_output=True, check=False)  # noqa: S108
    except FileNotFoundError:
        return False
    return b"Read-only file system" in run.stderr


pytestmark = pytest.mark.skipif(not confine(), reason="unshare can't make a read-only namespace here")


@contextmanager
def confined(store: Path, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a server from the root folder; yield the rest of its first log line of interest, and the process."""
    without = {name: value for name, value in ENVIRONMENT.items() if name not in ("HOME", "USER", "LOGNAME", "TMPDIR")}
    command = [*CONFINED, sys.executable, "-m", "app", "serve", "--port", "0", "--store", str(store)]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**without, "PYTHONPATH": str(ROOT), **environment},
        cwd="/",
    ) as process:
        assert process.stderr
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"(http://\S+) serves", line):
                yield found[1], process
                process.send_signal(signal.SIGTERM)
                assert process.wait() == 0
                return
        yield "".join(lines), process


def test_a_random_user_on_a_read_only_file_system_serves(tiny_store: Path) -> None:
    with confined(tiny_store) as (url, _):
        answer = httpx.post(f"{url}/next-word", json={"text": "the company said"}, timeout=60)
        page = httpx.get(f"{url}/")
        activated = httpx.post(f"{url}/models/tiny/activate", json={"version": "1"}, timeout=60)
    assert (answer.status_code, page.status_code) == (200, 200)
    assert activated.json()["persisted"] in (True, False)


def test_workers_need_a_folder_for_temporary_files_and_say_so(tiny_store: Path) -> None:
    with confined(tiny_store, SEQSERVE_WORKERS="2") as (log, process):
        assert process.wait() == 2
    assert re.search(r"seqserve: SEQSERVE_WORKERS: expected a folder for temporary files: No usable temp", log)
