"""Requests per second of several replicas, behind nginx and on Ray Serve; `make bench-scale`.

Two cores hold two computing replicas at most. For more, the language model sleeps for the time that one core was
measured to take, so the rest of the way of a request is real: proxy, HTTP, scheduler. The results are written to
results.md and results.png beside this file.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import httpx
import matplotlib as mpl
import tyro

mpl.use("Agg")

from matplotlib import pyplot as plt

from app.api.http.keys import create
from tests.bench.scale.simulated import TEXT
from tests.bench.serving.processes import Server
from tests.bench.serving.wrk import DONE, read
from tests.deploy.nginx import proxied

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[2]
PYTHON: Final = Path(sys.executable)
RAY_PYTHON: Final = ROOT / ".venv-ray" / "bin" / "python"
WORDS: Final = 834
DOCUMENT: Final = " ".join(["the company said its profits rose"] * (WORDS // 6))
KEYSTROKE: Final = "the company said its third-quarter profits"
SESSIONS: Final = 4096
CONNECTIONS: Final = 8  # per replica
START_S: Final = 240.0
SCRIPT: Final = """
wrk.method, wrk.body = "POST", os.getenv("BENCH_BODY")
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. os.getenv("BENCH_KEY")
local index = 0
function request()
  index = index + 1
  wrk.headers["X-Session-Id"] = "writer-" .. index % SESSIONS
  return wrk.format()
end
""".replace("SESSIONS", str(SESSIONS))


class Place(NamedTuple):
    """A service that is measured: its URL and its processes, without those of nginx."""

    url: str
    servers: Sequence[Server]

    def cpu_seconds(self) -> float:
        """Return the processor time so far."""
        return sum(server.cpu_seconds() for server in self.servers)


@dataclass(frozen=True)
class Row:
    """Requests a second of some replicas."""

    arrangement: str
    replicas: int
    per_second: float
    efficiency: float  # of the arrangement's one replica, times the replicas


@dataclass(frozen=True)
class Bench:
    """The folder of a run, the environment of its servers, and the seconds of a load."""

    folder: Path
    environment: dict[str, str]
    key: str
    seconds: int

    @contextmanager
    def started(self, name: str, command: Sequence[object], port: int, **variables: str) -> Iterator[Server]:
        """A server that is ready, until the block ends."""
        server = Server([*map(str, command)], self.environment | variables, self.folder / f"{name}.log")
        try:
            until = time.monotonic() + START_S
            while not _ready(port):
                if server.status() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{name} is not ready:\n{server.log_tail()}")
                time.sleep(0.1)
            yield server
        finally:
            server.stop()

    @contextmanager
    def servers(self, replicas: int, step_s: float) -> Iterator[tuple[Place, Place]]:
        """Servers behind nginx, and the first of them alone."""
        with ExitStack() as stack:
            ports = [_free_port() for _ in range(replicas)]
            servers = []
            for port in ports:
                variables = _variables(step_s) | {"SEQSERVE_PORT": str(port)}
                command = [PYTHON, "-m", "tests.bench.scale.simulated"]
                servers.append(stack.enter_context(self.started(f"server-{port}", command, port, **variables)))
            folder = self.folder / f"nginx-{ports[0]}"
            folder.mkdir()
            url = stack.enter_context(proxied(ports, folder))
            yield Place(url, servers), Place(f"http://127.0.0.1:{ports[0]}", servers[:1])

    @contextmanager
    def on_ray(self, replicas: int, step_s: float) -> Iterator[tuple[Place, Place]]:
        """Replicas behind Ray's proxy, twice."""
        port = _free_port()
        command = [RAY_PYTHON, "-m", "tests.bench.scale.on_ray", port, replicas]
        with self.started(f"ray-{port}", command, port, **_variables(step_s)) as server:
            place = Place(f"http://127.0.0.1:{port}", [server])
            yield place, place

    def per_second(self, url: str, path: str, text: str, connections: int) -> float:
        """Return the answers per second of a load of `seconds`. Raise RuntimeError if a request failed."""
        script = self.folder / "script.lua"
        script.write_text(SCRIPT + DONE)
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{self.seconds}s"]
        command += ["--timeout", "60s", "--script", str(script), f"{url}{path}"]
        variables = {"BENCH_BODY": f'{{"text": "{text}"}}', "BENCH_KEY": self.key}
        load = read(subprocess.run(command, env=variables, check=True, capture_output=True, encoding="utf-8").stdout)
        if load.failed or not load.answered:
            raise RuntimeError(f"{url}{path}: {load.failed} requests failed, {load.answered} were answered")
        return load.answered / load.seconds


def _variables(step_s: float) -> dict[str, str]:
    """Return the settings of a simulated server, which takes steps of two texts, or of a computing one."""
    return {"BENCH_STEP_S": str(step_s), "SEQSERVE_BATCH_SIZE": "2"} if step_s else {}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


def _ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def measure(bench: Bench, name: str, counts: Sequence[int], step_s: float) -> list[Row]:
    """Return a row for each number of replicas behind `name`, nginx or Ray Serve."""
    rows: list[Row] = []
    start = bench.servers if name == "nginx" else bench.on_ray
    for replicas in counts:
        with start(replicas, step_s) as (place, _):
            found = bench.per_second(place.url, "/perplexity", TEXT if step_s else DOCUMENT, CONNECTIONS * replicas)
        first = rows[0].per_second / rows[0].replicas if rows else found / replicas
        rows.append(Row(f"{name}, {'simulated' if step_s else 'computing'}", replicas, found, found / replicas / first))
        print(rows[-1], flush=True)
    return rows


def document_seconds(bench: Bench) -> float:
    """Return the processor time that a server takes for a document."""
    with bench.servers(1, 0) as (_, alone):
        before = alone.cpu_seconds()
        answered = bench.per_second(alone.url, "/perplexity", DOCUMENT, 1) * bench.seconds
        return (alone.cpu_seconds() - before) / answered


def compare(bench: Bench, rounds: int) -> list[str]:
    """Return a line of keystrokes per second, and their processor time, for each arrangement of one server."""
    with bench.servers(1, 0) as (nginx, alone), bench.on_ray(1, 0) as (ray, _):
        places = {"alone": alone, "behind nginx, without nginx's own": nginx, "one replica of Ray Serve": ray}
        best, milliseconds = dict.fromkeys(places, 0.0), dict.fromkeys(places, 0.0)
        for _ in range(rounds):
            for name, place in places.items():
                before = place.cpu_seconds()
                found = bench.per_second(place.url, "/next-word", KEYSTROKE, CONNECTIONS)
                if found > best[name]:
                    best[name] = found
                    milliseconds[name] = 1000 * (place.cpu_seconds() - before) / (found * bench.seconds)
    lines = [f"| {name} | {best[name]:,.0f} | {milliseconds[name]:.2f} |" for name in places]
    print(*lines, sep="\n", flush=True)
    return lines


def plot(rows: Sequence[Row], file: Path) -> None:
    """Plot the efficiency of each arrangement over its replicas."""
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for name in dict.fromkeys(row.arrangement for row in rows):
        points = [(row.replicas, row.efficiency) for row in rows if row.arrangement == name]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", xlabel="replicas", ylabel="efficiency", ylim=(0, 1.1))
    counts = sorted({row.replicas for row in rows})
    axes.set_xticks(counts, map(str, counts))
    axes.axhline(0.9, color="grey", linewidth=0.5)
    axes.legend(loc="lower left")
    figure.savefig(file, dpi=120)


RESULTS: Final = """\
# Replicas

<!-- Written by `make bench-scale`. -->

Requests per second over {connections} connections per replica, closed loop, {sessions:,} sessions, on {processors}
processors with a load average of {load:.1f} before the run. A simulated replica scores a text by sleeping
{step_ms:.1f} ms, the processor time of the computing server for {words} words, one text at a time; proxy, HTTP and
scheduler are real.
Efficiency is relative to one replica of the same arrangement.

| | replicas | requests/s | efficiency |
| --- | ---: | ---: | ---: |
{rows}

![Efficiency over replicas](results.png)

Keystrokes of the computing server, {connections} connections, the best of {rounds} rounds in turns:

| | requests/s | processor time of a request, ms |
| --- | ---: | ---: |
{comparison}
"""


def main(
    replicas: Annotated[tuple[int, ...], tyro.conf.arg(help="Simulated servers behind nginx.")] = (1, 2, 4, 8, 16),
    ray_replicas: Annotated[tuple[int, ...], tyro.conf.arg(help="Simulated replicas of Ray Serve.")] = (1, 2, 4),
    seconds: Annotated[int, tyro.conf.arg(help="Seconds of each load.")] = 10,
    rounds: Annotated[int, tyro.conf.arg(help="Rounds of the comparison.")] = 3,
) -> None:
    """Measure, and write the results beside this file."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        key = create(folder / "keys", "bench", "predict", None)
        shutil.copytree(ROOT / "models_store" / "ptb", folder / "store" / "ptb")
        settings = {"STORE": str(folder / "store"), "API_KEYS_FILE": str(folder / "keys")}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SEQSERVE_")}
        environment |= {f"SEQSERVE_{name}": value for name, value in settings.items()}
        environment |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "SEQSERVE_LOG_LEVEL": "warning"}
        environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "app.server.ray:middleware"
        bench = Bench(folder, environment, key, seconds)
        comparison = compare(bench, rounds)
        step_s = document_seconds(bench)
        rows = measure(bench, "nginx", (1, 2), 0)
        rows += measure(bench, "nginx", replicas, step_s)
        rows += measure(bench, "Ray Serve", ray_replicas, step_s)
    plot(rows, HERE / "results.png")
    lines = [f"| {row.arrangement} | {row.replicas} | {row.per_second:,.1f} | {row.efficiency:.2f} |" for row in rows]
    page = RESULTS.format(
        connections=CONNECTIONS,
        sessions=SESSIONS,
        processors=len(os.sched_getaffinity(0)),
        load=load,
        step_ms=1000 * step_s,
        words=WORDS,
        rows="\n".join(lines),
        rounds=rounds,
        comparison="\n".join(comparison),
    )
    (HERE / "results.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    tyro.cli(main)
