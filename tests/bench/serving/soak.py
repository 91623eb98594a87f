"""Soak test: minutes of mixed requests to a real server, without failures or memory growth.

    python -m tests.bench.serving.soak --data ../shared/data

The last line is JSON. Exit status 1 if a request failed, if there were too few requests, or if memory grew by
more than the factor GROWTH after the warm-up.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import tyro

from tests.bench.serving import wrk
from tests.bench.serving.contenders import ours, running
from tests.bench.serving.workloads import Workload, workloads

GROWTH: Final = 1.05
CONNECTIONS: Final = 16
# Seconds per workload in each round: mostly typing.
ROUND: Final = {"typing": 15, "cold": 3, "scoring": 2, "digits": 5, "captions": 5}


@dataclass(frozen=True)
class Options:
    """Options of the soak test."""

    data: Path  # folder of corpora: ptb/, mnist/, flickr8k/
    rounds: int = 6  # of 30 seconds, after one to warm up
    kinds: str = ",".join(ROUND)
    least: int = 100_000  # requests
    short: bool = False  # one second per workload and round


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> int:
    """Run the soak test and print the results."""
    known = workloads(options.data)
    selected = [known[name]() for name in options.kinds.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        results = soaked(selected, Path(folder), options)
    print(json.dumps(results))
    return not (results["failed"] == 0 and results["requests"] >= options.least and results["growth"] <= GROWTH)


def soaked(selected: Sequence[Workload], folder: Path, options: Options) -> dict[str, Any]:
    """Return the numbers of requests and failures, MiB after warm-up and at the end, and their ratio."""
    for workload in selected:
        wrk.write(workload, folder / workload.name)
    offsets = dict.fromkeys((workload.name for workload in selected), 0)

    def one_round(url: str) -> list[wrk.Load]:
        loads = []
        for workload in selected:
            seconds = 1 if options.short else ROUND[workload.name]
            load = _load(url, workload, folder, seconds, offsets[workload.name])
            offsets[workload.name] += load.answered + load.failed
            loads.append(load)
        return loads

    with running(ours(), selected[0], folder) as (server, url):
        one_round(url)
        warm = server.pss_mib()
        loads = [load for _ in range(options.rounds) for load in one_round(url)]
        after = server.pss_mib()
    return {
        "requests": sum(load.answered for load in loads),
        "failed": sum(load.failed for load in loads),
        "seconds": round(sum(load.seconds for load in loads), 1),
        "warm_mib": round(warm, 1),
        "after_mib": round(after, 1),
        "growth": round(after / warm, 4),
    }


def _load(url: str, workload: Workload, folder: Path, seconds: int, start: int) -> wrk.Load:
    return wrk.run(url, workload, folder / workload.name, connections=CONNECTIONS, seconds=seconds, start=start)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
