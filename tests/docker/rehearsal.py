"""Build the server image without Docker, and serve from it like a container.

    python -m tests.docker.rehearsal [--python python3.11]

The steps of docker/Dockerfile run in an empty folder, as an unprivileged user if root calls. The result is made
read-only, the image's command serves and its health check runs. Sizes are printed without the base image. The
unprivileged user must be able to run the interpreter. The last line is the table as JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import httpx

from tests.docker import dockerfile
from tests.docker.dockerfile import ROOT

NOBODY = 65534
PORT = 8765
HEALTHY_S = 120.0
POLL_S = 0.1

Environment: TypeAlias = Mapping[str, str]


def main() -> None:
    """Build, serve and print the sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, default=Path(sys.base_prefix, "bin", "python3"))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        work = Path(folder, "seqserve")
        work.mkdir()
        Path(folder).chmod(0o755)
        results = rehearse(work, parser.parse_args().python)
    for name, value in results.items():
        print(f"{name:<32}{value:>10.1f}")
    print(json.dumps(results))


def rehearse(work: Path, python: Path) -> dict[str, float]:
    """Build an image in `work` with this interpreter; return its sizes, start-up time and memory."""
    install, final = dockerfile.stages(ROOT / "docker" / "Dockerfile")
    path = _own(work, python)
    build(install, work, {"PATH": path, "HOME": "/nonexistent"})
    copy(final, work)
    for found in [work, *work.rglob("*")]:
        if not found.is_symlink():
            found.chmod(found.stat().st_mode & ~0o222)
            os.chown(found, os.getuid(), os.getgid())
    before = _files(work)
    results = _sizes(work) | serve(final, work, path)
    assert _files(work) == before, "the server wrote beside its code"
    return results


def build(steps: list[dockerfile.Step], work: Path, environment: Environment) -> None:
    """Run the RUN and COPY steps in `work`."""
    for step in steps:
        if step.word == "COPY":
            copy([step], work)
        elif step.word == "RUN":
            print(f"{step.text[:100]} …", file=sys.stderr)
            subprocess.run(["sh", "-c", step.text], cwd=work, env={**_pip(), **environment}, check=True, **_nobody())


def copy(steps: list[dockerfile.Step], work: Path) -> None:
    """Run the COPY steps."""
    for source, target in dockerfile.copied(steps):
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, work / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            Path(work, target).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, work / target)
        for copied in (work / target, *(work / target).rglob("*")):
            os.chown(copied, *((NOBODY, NOBODY) if os.getuid() == 0 else (os.getuid(), os.getgid())))


def serve(steps: list[dockerfile.Step], work: Path, path: str) -> dict[str, float]:
    """Run the image's command until its health check passes, then send one request."""
    given = {name: _relocated(value, work, path) for name, value in dockerfile.environment(steps).items()}
    environment = {"HOME": "/nonexistent", **given, "SEQSERVE_HOST": "127.0.0.1", "SEQSERVE_PORT": str(PORT)}
    as_user: dict[str, Any] = {"cwd": work, "env": environment, **_nobody()}
    assert subprocess.run(["touch", "written"], check=False, stderr=subprocess.DEVNULL, **as_user).returncode
    command = dockerfile.one(steps, "ENTRYPOINT").command + dockerfile.one(steps, "CMD").command
    started = time.monotonic()
    server = subprocess.Popen([shutil.which(command[0], path=environment["PATH"]) or "", *command[1:]], **as_user)
    try:
        ready_s = _ready(started)
        check = dockerfile.one(steps, "HEALTHCHECK").command
        subprocess.run(check, check=True, timeout=30, **as_user)
        answer = httpx.post(f"http://127.0.0.1:{PORT}/next-word", json={"text": "the company said"}).raise_for_status()
        assert answer.json()["suggestions"]
        return {"seconds to ready": ready_s, "MB of memory, at most": _peak(server.pid)}
    finally:
        server.terminate()
        assert server.wait(60) == 0


def _own(work: Path, python: Path) -> str:
    """Make the build user own `work`; return a PATH on which `python` is the given interpreter."""
    commands = work.parent / "bin"
    commands.mkdir()
    (commands / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    (commands / "python").chmod(0o755)
    if os.getuid() == 0:
        os.chown(work, NOBODY, NOBODY)
    return f"{commands}:/usr/local/bin:/usr/bin:/bin"


def _nobody() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.getuid() == 0 else {}


def _pip() -> dict[str, str]:
    """Return pip's settings in the environment, such as an index."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


def _relocated(value: str, work: Path, path: str) -> str:
    return value.replace("/seqserve", str(work)).replace("$PATH", path)


def _ready(started: float) -> float:
    while time.monotonic() - started < HEALTHY_S:
        try:
            if httpx.get(f"http://127.0.0.1:{PORT}/readyz").is_success:
                return time.monotonic() - started
        except httpx.ConnectError:
            pass
        time.sleep(POLL_S)
    raise TimeoutError(f"not ready after {HEALTHY_S} s")


def _peak(pid: int) -> float:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def _sizes(work: Path) -> dict[str, float]:
    parts: Sequence[str] = (".venv", "app", "models_store")
    sizes = {f"MB of {part}": sum(map(_bytes, (work / part).rglob("*"))) / 1e6 for part in parts}
    return sizes | {"MB on top of the base": sum(sizes.values())}


def _bytes(file: Path) -> int:
    return file.stat().st_size if file.is_file() and not file.is_symlink() else 0


def _files(work: Path) -> set[Path]:
    return set(work.rglob("*"))


if __name__ == "__main__":
    main()
