"""Minutes of mixed requests to one real server: nothing may fail, and its memory may not grow.

    python -m tests.bench.serving.soak --data ../shared/data

The last line is JSON. Status 1 if a request failed, if there were too few of them, or if memory grew by more than
GROWTH against what it was once the server was warm.
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
# Of each round, seconds of each kind: a round is what an hour of people does, typing most of all.
ROUND: Final = {"typing": 15, "cold": 3, "scoring": 2, "digits": 5, "captions": 5}


@dataclass(frozen=True)
class Options:
    """How long."""

    data: Path  # folder of corpora: ptb/, mnist/, flickr8k/
    rounds: int = 6  # of 30 seconds; one more, before them, warms
    kinds: str = ",".join(ROUND)
    least: int = 100_000  # requests
    short: bool = False  # a second of each kind in a round


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> int:
    """Soak, print."""
    known = workloads(options.data)
    asked = [known[name]() for name in options.kinds.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        figures = soaked(asked, Path(folder), options)
    print(json.dumps(figures))
    return not (figures["failed"] == 0 and figures["requests"] >= options.least and figures["growth"] <= GROWTH)


def soaked(asked: Sequence[Workload], folder: Path, options: Options) -> dict[str, Any]:
    """Requests, those that failed, MiB when warm and at the end, and their ratio."""
    for workload in asked:
        wrk.write(workload, folder / workload.name)
    places = dict.fromkeys((workload.name for workload in asked), 0)

    def one_round(url: str) -> list[wrk.Load]:
        loads = []
        for workload in asked:
            seconds = 1 if options.short else ROUND[workload.name]
            load = _load(url, workload, folder, seconds, places[workload.name])
            places[workload.name] += load.answered + load.failed
            loads.append(load)
        return loads

    with running(ours(), asked[0], folder) as (server, url):
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
