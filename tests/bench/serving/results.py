"""Results of the benchmark and their required ratios."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from tests.bench.serving.wrk import Load

OURS: Final = "ours"  # prefix of our contenders
DOCUMENT_TOKENS: Final = 201  # tokens of a document of the scoring workload: words and <eos>


class Result(NamedTuple):
    """The result of one contender under one load."""

    per_second: float  # requests answered
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of all processes, per request
    pss_mib: float  # of all processes, after the load
    failed: int  # requests


class Cell(NamedTuple):
    """The key of a result."""

    workload: str
    contender: str
    connections: int


Results: TypeAlias = Mapping[Cell, Result]
Limits: TypeAlias = Mapping[str, Mapping[str, float]]  # rates by engine and task: see limits.py


@dataclass
class Tally:
    """The measured time slices of a contender."""

    loads: list[Load] = field(default_factory=list)
    cpu_s: float = 0.0
    pss_mib: float = 0.0

    def add(self, load: Load, cpu_s: float, pss_mib: float) -> None:
        """Add a slice."""
        self.loads.append(load)
        self.cpu_s += cpu_s
        self.pss_mib = max(self.pss_mib, pss_mib)

    def result(self) -> Result:
        """Return the overall rate and the medians of the slices' percentiles, 0 without answers."""
        answered = sum(load.answered for load in self.loads)
        fruitful = [load for load in self.loads if load.answered] or self.loads
        return Result(
            per_second=answered / sum(load.seconds for load in self.loads),
            p50_ms=statistics.median(load.p50_ms for load in fruitful),
            p99_ms=statistics.median(load.p99_ms for load in fruitful),
            cpu_ms=1000 * self.cpu_s / max(answered, 1),
            pss_mib=self.pss_mib,
            failed=sum(load.failed for load in self.loads),
        )


class Ratio(NamedTuple):
    """A required ratio and the measured one."""

    what: str
    sign: str  # ">=" or "<="
    required: float
    found: float | None  # None: not measured

    @property
    def met(self) -> bool | None:
        """True if the ratio is met, None if it was not measured."""
        if self.found is None:
            return None
        return self.found >= self.required if self.sign == ">=" else self.found <= self.required


def ratios(results: Results, limits: Limits, ours: str = OURS) -> list[Ratio]:
    """Return the required ratios of the contender `ours`."""

    def best(workload: str, engine: str) -> float | None:
        """Return the requests per second of the best peer with batching, at 16 connections."""
        rates = [
            result.per_second
            for cell, result in results.items()
            if cell.workload == workload and cell.connections == 16 and cell.contender.endswith(f"-{engine}")
        ]
        return max(rates, default=None)

    def rate(workload: str, contender: str) -> float | None:
        result = results.get(Cell(workload, contender, 16))
        return result.per_second if result else None

    def p50(contender: str) -> float | None:
        result = results.get(Cell("typing", contender, 1))
        return result.p50_ms if result else None

    typing = rate("typing", ours)
    documents = rate("scoring", ours)
    tokens = documents and documents * DOCUMENT_TOKENS
    lines = [
        Ratio("typing, 16 connections: plain FastAPI with torch", ">=", 25, _of(typing, rate("typing", "plain"))),
        Ratio("typing, 16 connections: the best peer with torch", ">=", 8, _of(typing, best("typing", "torch"))),
        Ratio("typing, 16 connections: the best peer with our graph", ">=", 2, _of(typing, best("typing", "int8"))),
        Ratio("typing, 16 connections: the echo limit", ">=", 0.40, _of(typing, rate("typing", "echo"))),
        Ratio("typing, 1 connection, p50: plain FastAPI with torch", "<=", 1 / 8, _of(p50(ours), p50("plain"))),
        Ratio("scoring, tokens: eager torch in a loop", ">=", 3, _of(tokens, limits.get("torch", {}).get("scoring"))),
        Ratio("scoring, tokens: the bare engine", ">=", 0.8, _of(tokens, limits.get("int8", {}).get("scoring"))),
    ]
    for workload, required in (("cold", 4), ("digits", 2), ("captions", 2)):
        for engine, name in (("torch", "torch"), ("int8", "our graph")):
            what = f"{workload}, 16 connections: the best peer with {name}"
            lines.append(Ratio(what, ">=", required, _of(rate(workload, ours), best(workload, engine))))
    return lines


def as_json(results: Results) -> list[dict[str, object]]:
    """Return the results as a list of JSON objects."""
    return [
        cell._asdict() | {name: round(value, 3) for name, value in result._asdict().items()}
        for cell, result in results.items()
    ]


def of_workload(results: Results, workload: str) -> dict[str, dict[int, Result]]:
    """Return results by contender and connections, ours first, then in measured order."""
    found: dict[str, dict[int, Result]] = {}
    for cell, result in sorted(results.items(), key=lambda each: not each[0].contender.startswith(OURS)):
        if cell.workload == workload:
            found.setdefault(cell.contender, {})[cell.connections] = result
    return found


def names(results: Results, name: Callable[[Cell], str | int]) -> list[str | int]:
    """Return the distinct workloads, contenders or connections."""
    return list(dict.fromkeys(map(name, results)))


def _of(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None
