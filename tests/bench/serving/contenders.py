"""The compared servers: their commands and environments."""

import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from tests.bench.serving.processes import Server
from tests.bench.serving.results import OURS
from tests.bench.serving.workloads import Workload
from tests.e2e.conftest import ENVIRONMENT

PEERS: Final = Path(".venv-bench/bin")
PACKAGE: Final = "tests.bench.serving.peers"
UVICORN: Final = (sys.executable, "-m", "uvicorn", "--log-level", "warning", "--no-access-log")
START_S: Final = 120  # until the first answer
NEXT_WORD: Final = ("typing", "cold")
EVERYTHING: Final = (*NEXT_WORD, "scoring", "digits", "captions")


@dataclass(frozen=True)
class Contender:
    """A server: its command (with `{port}`), engine and workloads."""

    name: str
    command: tuple[str, ...]
    engine: str = ""  # see peers/engines.py
    threads: int = 1  # inference threads per process
    workers: int = 1  # inference processes, for frameworks with batching
    workloads: tuple[str, ...] = EVERYTHING
    environment: tuple[tuple[str, str], ...] = ()
    checked: bool = True  # compare its answers with those of seqserve


def ours(workers: int = 1) -> Contender:
    """Return seqserve with its defaults, but for the language model: that of the peers."""
    several = ("--workers", str(workers)) if workers > 1 else ()
    command = (sys.executable, "-m", "app", "serve", "--port", "{port}", *several)
    model = (("SEQSERVE_DEFAULT_MODELS", "language_model=ptb"),)
    return Contender(f"{OURS}-{workers}-workers" if several else OURS, command, environment=model)


def peers() -> list[Contender]:
    """Return all peers, the echo limit last."""
    return [
        Contender("plain", (*UVICORN, "--port", "{port}", f"{PACKAGE}.plain:app"), "torch"),
        *(_litserve(engine) for engine in ("torch", "int8")),
        *(_bentoml(engine) for engine in ("torch", "int8")),
        *(_ray(engine) for engine in ("torch", "int8")),
        Contender("echo", (*UVICORN, "--port", "{port}", f"{PACKAGE}.echo:app"), workloads=("typing",), checked=False),
    ]


def chosen(prefixes: Sequence[str]) -> list[Contender]:
    """Return the peers with these name prefixes; raise ValueError for a prefix without a peer."""
    for prefix in prefixes:
        if not any(peer.name.startswith(prefix) for peer in peers()):
            raise ValueError(f"peers: expected prefixes of {[peer.name for peer in peers()]}, found {prefix!r}")
    return [peer for peer in peers() if peer.name.startswith(tuple(prefixes))]


def _litserve(engine: str) -> Contender:
    return Contender(f"litserve-{engine}", (str(PEERS / "python"), "-m", f"{PACKAGE}.lit", "{port}"), engine)


def _bentoml(engine: str) -> Contender:
    command = (str(PEERS / "bentoml"), "serve", f"{PACKAGE}.bento:Front", "--host", "127.0.0.1", "--port", "{port}")
    return Contender(f"bentoml-{engine}", command, engine, environment=(("BENTOML_DO_NOT_TRACK", "True"),))


def _ray(engine: str) -> Contender:
    options = (("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1"), ("RAY_USAGE_STATS_ENABLED", "0"))
    command = (str(PEERS / "python"), "-m", f"{PACKAGE}.rays", "{port}")
    return Contender(f"ray-{engine}", command, engine, environment=options)


class NotStarted(RuntimeError):
    """The server did not answer."""


@contextmanager
def running(contender: Contender, first: Workload, folder: Path) -> Iterator[tuple[Server, str]]:
    """A server that has answered the `first` workload's first request, and its URL; stopped on exit.

    Raise NotStarted, with the end of what the server wrote.
    """
    port = _free_port()
    command = [part.replace("{port}", str(port)) for part in contender.command]
    try:
        server = Server(command, _environment(contender), folder / f"{contender.name}.log")
    except OSError as error:
        raise NotStarted(f"{contender.name}: {command[0]}: {error.strerror}") from error
    try:
        url = f"http://127.0.0.1:{port}"
        _await_answer(contender, server, url, first)
        yield server, url
    finally:
        server.stop()


def _environment(contender: Contender) -> dict[str, str]:
    threads = str(contender.threads)
    sizes = {"BENCH_THREADS": threads, "BENCH_WORKERS": str(contender.workers), "OMP_NUM_THREADS": threads}
    chosen = {"BENCH_ENGINE": contender.engine, "PYTHONPATH": str(Path.cwd()), **sizes}
    return ENVIRONMENT | (chosen if contender.engine else {}) | dict(contender.environment)


def _await_answer(contender: Contender, server: Server, url: str, first: Workload) -> None:
    headers, detail = {"Content-Type": first.content_type}, ""
    with httpx.Client(base_url=url, headers=headers, timeout=START_S) as client:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if server.status() is not None:
                raise NotStarted(f"{contender.name}: ended with status {server.status()}:\n{server.log_tail()}")
            try:
                response = client.post(f"/{first.kind}", content=first.bodies[0])
            except httpx.TransportError as error:
                detail = str(error)
            else:
                if response.status_code == 200:
                    return
                detail = response.text
            time.sleep(0.2)
    raise NotStarted(f"{contender.name}: no answer in {START_S} s: {detail}\n{server.log_tail()}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
