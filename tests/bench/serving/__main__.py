"""Ours against its peers, in one run: the same weights, the same machine, in turn.

    make bench
    python -m tests.bench.serving --only typing --peers plain,litserve --seconds 1

Ours runs all the time; a peer is started, checked, warmed, measured and ended, and ours has a slice of every load just
before it. Whichever is not measured is halted, since an idle server may be busy. Run it from the root of the project.
Wrong answers end the run; status 1 if a peer can't be started.
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
from tests.bench.serving.figures import OURS, Cell, Figure, Limits, Tally, ratios, told
from tests.bench.serving.processes import Server
from tests.bench.serving.workloads import Workload, long_document, workloads

HERE: Final = Path(__file__).parent
WARM_CONNECTIONS: Final = 16
WARM_S, OURS_S = 1, 2  # wrk knows whole seconds alone


@dataclass(frozen=True)
class Options:
    """What to measure."""

    data: Path  # folder of corpora: ptb/, mnist/, flickr8k/
    only: str = "typing,cold,scoring,digits,captions"  # workloads
    peers: str = "plain,litserve,bentoml,ray,echo"  # names, or their beginnings
    connections: str = "1,16,64"
    seconds: int = 3  # that a peer is measured for under each load
    peer_threads: int = 1  # of inference in each process of a peer
    peer_workers: int = 1  # processes of inference of each peer with batching
    ours_workers: int = 2  # more than 1: ours with so many workers is measured as well
    limits: bool = True  # measure the engines in a loop, and the long document
    results: Path = HERE / "results.md"  # the picture is written beside it


@dataclass
class Bench:
    """A run: what is asked, how far it has been asked, and what was found."""

    options: Options
    folder: Path  # of bodies and logs
    asked: dict[str, Workload]
    places: dict[tuple[str, str], int] = field(default_factory=dict)  # by URL and workload
    tallies: dict[Cell, Tally] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def run(self, others: Sequence[Contender]) -> tuple[dict[Cell, Figure], Limits]:
        """Measure all; raise WrongAnswers or NotStarted if ours is no reference."""
        for workload in self.asked.values():
            wrk.write(workload, self.folder / workload.name)
        with running(ours(), next(iter(self.asked.values())), self.folder) as (server, url):
            expected = {workload.name: checks.answers(url, workload) for workload in self.asked.values()}
            for workload in self.asked.values():
                self._ask(url, workload, WARM_CONNECTIONS, WARM_S)
            for contender in others:
                try:
                    self._contend(contender, expected, server, url)
                except NotStarted as error:
                    self.failures[contender.name] = str(error)
                    print(error, flush=True)
            found = self._limits(url) if self.options.limits else {}
        return {cell: tally.figure() for cell, tally in self.tallies.items()}, found

    def _contend(self, contender: Contender, expected: dict[str, Any], our_server: Server, our_url: str) -> None:
        taken = [self.asked[name] for name in contender.workloads if name in self.asked]
        if not taken:
            return
        with running(contender, taken[0], self.folder) as (server, url):
            for workload in taken if contender.checked else ():
                checks.require_alike(contender, workload, checks.answers(url, workload), expected[workload.name])
            for workload in taken:
                with our_server.paused():
                    self._ask(url, workload, WARM_CONNECTIONS, WARM_S)
                for connections in map(int, self.options.connections.split(",")):
                    with server.paused():
                        self._measure(OURS, our_server, our_url, workload, connections, OURS_S)
                    with our_server.paused():
                        self._measure(contender.name, server, url, workload, connections, self.options.seconds)

    def _measure(self, name: str, server: Server, url: str, workload: Workload, connections: int, seconds: int) -> None:
        before = server.cpu_seconds()
        load = self._ask(url, workload, connections, seconds)
        cpu_s = server.cpu_seconds() - before
        cell = Cell(workload.name, name, connections)
        self.tallies.setdefault(cell, Tally()).add(load, cpu_s, server.pss_mib())
        print(f"{workload.name:10}{name:16}{connections:4}{load.answered / load.seconds:12,.1f}/s", flush=True)

    def _ask(self, url: str, workload: Workload, connections: int, seconds: int) -> wrk.Load:
        place = self.places.get((url, workload.name), 0)
        folder = self.folder / workload.name
        load = wrk.run(url, workload, folder, connections=connections, seconds=seconds, start=place)
        self.places[url, workload.name] = place + load.answered + load.failed + connections  # whose last had no time
        return load

    def _limits(self, url: str) -> Limits:
        """The engines in a loop; beside them, ours on the long document."""
        found = {engine: self._loop(engine) for engine in limits.ENGINES}
        with httpx.Client(base_url=url, timeout=300) as client:
            response = client.post("/perplexity", json={"text": long_document(self.options.data)})
        return found | {
            "ours, over HTTP": {"long": response.json()["corpus"]["tokens"] / response.elapsed.total_seconds()}
        }

    def _loop(self, engine: str) -> dict[str, float]:
        command = [sys.executable, "-m", limits.__name__, engine, str(self.options.seconds), str(self.options.data)]
        figures: dict[str, float] = json.loads(subprocess.check_output(command, encoding="utf-8").splitlines()[-1])
        return figures


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> int:
    """Measure, print, write results.md and results.png."""
    known = workloads(options.data)
    asked = {name: known[name]() for name in options.only.split(",")}
    several = [ours(options.ours_workers)] if options.ours_workers > 1 else []
    sized = partial(replace, threads=options.peer_threads, workers=options.peer_workers)
    others = [*several, *map(sized, chosen(options.peers.split(",")))]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder), asked)
        figures, found = bench.run(others)
    lines = {each.name: ratios(figures, found, each.name) for each in (ours(), *several)}
    limit_part = [("limits", report.limit_table(found))] if found else []
    held = [(f"what must hold of {name}", report.ratio_table(each)) for name, each in lines.items()]
    parts = [*report.tables(figures).items(), *limit_part, *held]
    print(*(f"\n{title}\n{report.plain(table)}" for title, table in parts), sep="\n")
    options.results.write_text(page(parts, bench.failures))
    report.picture(figures, options.results.with_suffix(".png"))
    summary = {
        "figures": told(figures),
        "limits": found,
        "ratios": {name: [one._asdict() for one in each] for name, each in lines.items()},
    }
    print(json.dumps(summary | {"not started": bench.failures}))
    return bool(bench.failures)


def page(parts: Sequence[tuple[str, list[list[str]]]], failures: dict[str, str]) -> str:
    """results.md."""
    tables = "\n\n".join(f"## {title}\n\n{report.markdown(table)}" for title, table in parts)
    failed = "".join(f"\nNot started: {name}\n\n```\n{error}\n```\n" for name, error in failures.items())
    return (
        f"<!-- written by `make bench`; see ../README.md -->\n\n![Requests a second](results.png)\n\n{tables}\n{failed}"
    )


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
