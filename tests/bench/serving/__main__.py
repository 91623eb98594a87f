"""Benchmark seqserve against other servers with the same weights, alternating on one machine.

    make bench
    python -m tests.bench.serving --only typing --peers plain,litserve --seconds 1

seqserve runs all the time. Each peer is started, checked, warmed up, measured and stopped; before each of its loads,
seqserve is measured under the same one. The server that is not measured is paused, since an idle server may use CPU
time. Run it from the project root. Wrong answers abort the run; exit status 1 if a peer can't be started.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import httpx
import tyro

from tests.bench.serving import checks, limits, report, wrk
from tests.bench.serving.contenders import Contender, NotStarted, chosen, ours, running
from tests.bench.serving.processes import Server
from tests.bench.serving.results import OURS, Cell, Limits, Result, Tally, as_json, ratios
from tests.bench.serving.workloads import Workload, long_document, workloads

HERE: Final = Path(__file__).parent
WARM_CONNECTIONS: Final = 16
WARM_S, OURS_S = 1, 2  # wrk takes whole seconds only


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    data: Path  # folder of corpora: ptb/, mnist/, flickr8k/
    only: str = "typing,cold,scoring,digits,captions"  # workloads
    peers: str = "plain,litserve,bentoml,ray,echo"  # names or prefixes
    connections: str = "1,16,64"
    seconds: int = 3  # per peer and load
    peer_threads: int = 1  # inference threads per process of a peer
    peer_workers: int = 1  # inference processes per peer with batching
    ours_workers: int = 2  # if more than 1, seqserve with this many workers is measured too
    limits: bool = True  # measure the engines in a loop, and the long document
    results: Path = HERE / "results.md"  # the plot is written beside it


@dataclass
class Bench:
    """One run: workloads, offsets into them, and results."""

    options: Options
    folder: Path  # of bodies and logs
    workloads: dict[str, Workload]
    offsets: dict[tuple[str, str], int] = field(default_factory=dict)  # by URL and workload
    tallies: dict[Cell, Tally] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def run(self, others: Sequence[Contender]) -> tuple[dict[Cell, Result], Limits]:
        """Measure all; raise WrongAnswers or NotStarted if seqserve itself fails."""
        for workload in self.workloads.values():
            wrk.write(workload, self.folder / workload.name)
        with running(ours(), next(iter(self.workloads.values())), self.folder) as (server, url):
            expected = {workload.name: checks.answers(url, workload) for workload in self.workloads.values()}
            for workload in self.workloads.values():
                self._load(url, workload, WARM_CONNECTIONS, WARM_S)
            for contender in others:
                try:
                    self._measure_peer(contender, expected, server, url)
                except NotStarted as error:
                    self.failures[contender.name] = str(error)
                    print(error, flush=True)
            found = self._limits(url) if self.options.limits else {}
        return {cell: tally.result() for cell, tally in self.tallies.items()}, found

    def _measure_peer(self, contender: Contender, expected: dict[str, Any], our_server: Server, our_url: str) -> None:
        selected = [self.workloads[name] for name in contender.workloads if name in self.workloads]
        if not selected:
            return
        with running(contender, selected[0], self.folder) as (server, url):
            for workload in selected if contender.checked else ():
                checks.require_alike(contender, workload, checks.answers(url, workload), expected[workload.name])
            for workload in selected:
                with our_server.paused():
                    self._load(url, workload, WARM_CONNECTIONS, WARM_S)
                for connections in map(int, self.options.connections.split(",")):
                    with server.paused():
                        self._measure(OURS, our_server, our_url, workload, connections, OURS_S)
                    with our_server.paused():
                        self._measure(contender.name, server, url, workload, connections, self.options.seconds)

    def _measure(self, name: str, server: Server, url: str, workload: Workload, connections: int, seconds: int) -> None:
        before = server.cpu_seconds()
        load = self._load(url, workload, connections, seconds)
        cpu_s = server.cpu_seconds() - before
        cell = Cell(workload.name, name, connections)
        self.tallies.setdefault(cell, Tally()).add(load, cpu_s, server.pss_mib())
        print(f"{workload.name:10}{name:16}{connections:4}{load.answered / load.seconds:12,.1f}/s", flush=True)

    def _load(self, url: str, workload: Workload, connections: int, seconds: int) -> wrk.Load:
        offset = self.offsets.get((url, workload.name), 0)
        folder = self.folder / workload.name
        load = wrk.run(url, workload, folder, connections=connections, seconds=seconds, start=offset)
        self.offsets[url, workload.name] = (
            offset + load.answered + load.failed + connections
        )  # includes unfinished ones
        return load

    def _limits(self, url: str) -> Limits:
        """Measure the bare engines, and seqserve on the long document."""
        found = {engine: self._loop(engine) for engine in limits.ENGINES}
        with httpx.Client(base_url=url, timeout=300) as client:
            response = client.post("/perplexity", json={"text": long_document(self.options.data)})
        return found | {
            "ours, over HTTP": {"long": response.json()["corpus"]["tokens"] / response.elapsed.total_seconds()}
        }

    def _loop(self, engine: str) -> dict[str, float]:
        command = [sys.executable, "-m", limits.__name__, engine, str(self.options.seconds), str(self.options.data)]
        results: dict[str, float] = json.loads(subprocess.check_output(command, encoding="utf-8").splitlines()[-1])
        return results


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> int:
    """Run the benchmark, print the tables, write results.md and results.png."""
    known = workloads(options.data)
    selected = {name: known[name]() for name in options.only.split(",")}
    several = [ours(options.ours_workers)] if options.ours_workers > 1 else []
    sized = partial(replace, threads=options.peer_threads, workers=options.peer_workers)
    others = [*several, *map(sized, chosen(options.peers.split(",")))]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder), selected)
        results, found = bench.run(others)
    lines = {each.name: ratios(results, found, each.name) for each in (ours(), *several)}
    limit_part = [("limits", report.limit_table(found))] if found else []
    held = [(f"what must hold of {name}", report.ratio_table(each)) for name, each in lines.items()]
    parts = [*report.tables(results).items(), *limit_part, *held]
    print(*(f"\n{title}\n{report.plain(table)}" for title, table in parts), sep="\n")
    options.results.write_text(page(parts, bench.failures))
    report.plot(results, options.results.with_suffix(".png"))
    summary = {
        "figures": as_json(results),
        "limits": found,
        "ratios": {name: [one._asdict() for one in each] for name, each in lines.items()},
    }
    print(json.dumps(summary | {"not started": bench.failures}))
    return bool(bench.failures)


def page(parts: Sequence[tuple[str, list[list[str]]]], failures: dict[str, str]) -> str:
    """Return the content of results.md."""
    tables = "\n\n".join(f"## {title}\n\n{report.markdown(table)}" for title, table in parts)
    failed = "".join(f"\nNot started: {name}\n\n```\n{error}\n```\n" for name, error in failures.items())
    return (
        f"<!-- written by `make bench`; see ../README.md -->\n\n![Requests a second](results.png)\n\n{tables}\n{failed}"
    )


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
