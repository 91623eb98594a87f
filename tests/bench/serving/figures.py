"""What was measured, and what must hold of it."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from tests.bench.serving.wrk import Load

OURS: Final = "ours"  # begins the names of our contenders
DOCUMENT_TOKENS: Final = 201  # of a document of the scoring workload: its words and an end


class Figure(NamedTuple):
    """One contender under one load."""

    per_second: float  # requests answered
    p50_ms: float
    p99_ms: float
    cpu_ms: float  # of all its processes, a request
    pss_mib: float  # of all its processes, right after the load
    failed: int  # requests


class Cell(NamedTuple):
    """Where a figure belongs."""

    workload: str
    contender: str
    connections: int


Figures: TypeAlias = Mapping[Cell, Figure]
Limits: TypeAlias = Mapping[str, Mapping[str, float]]  # of each engine in a loop, by what was done: see limits.py


@dataclass
class Tally:
    """The slices of time in which a contender had its turn."""

    loads: list[Load] = field(default_factory=list)
    cpu_s: float = 0.0
    pss_mib: float = 0.0

    def add(self, load: Load, cpu_s: float, pss_mib: float) -> None:
        """One more."""
        self.loads.append(load)
        self.cpu_s += cpu_s
        self.pss_mib = max(self.pss_mib, pss_mib)

    def figure(self) -> Figure:
        """Rates over all of them; percentiles are the medians of the slices' own, 0 if nothing was answered."""
        answered = sum(load.answered for load in self.loads)
        fruitful = [load for load in self.loads if load.answered] or self.loads
        return Figure(
            per_second=answered / sum(load.seconds for load in self.loads),
            p50_ms=statistics.median(load.p50_ms for load in fruitful),
            p99_ms=statistics.median(load.p99_ms for load in fruitful),
            cpu_ms=1000 * self.cpu_s / max(answered, 1),
            pss_mib=self.pss_mib,
            failed=sum(load.failed for load in self.loads),
        )


class Ratio(NamedTuple):
    """One line of what must hold."""

    what: str
    sign: str  # the ratio is to be >= or <= what is required
    required: float
    found: float | None  # None: not measured

    @property
    def met(self) -> bool | None:
        """None: not measured."""
        if self.found is None:
            return None
        return self.found >= self.required if self.sign == ">=" else self.found <= self.required


def ratios(figures: Figures, limits: Limits, ours: str = OURS) -> list[Ratio]:
    """All lines that a bench can decide about the contender `ours`."""

    def best(workload: str, engine: str) -> float | None:
        """Requests a second of the best of the peers with batching, at 16 connections."""
        rates = [
            figure.per_second
            for cell, figure in figures.items()
            if cell.workload == workload and cell.connections == 16 and cell.contender.endswith(f"-{engine}")
        ]
        return max(rates, default=None)

    def rate(workload: str, contender: str) -> float | None:
        figure = figures.get(Cell(workload, contender, 16))
        return figure.per_second if figure else None

    def p50(contender: str) -> float | None:
        figure = figures.get(Cell("typing", contender, 1))
        return figure.p50_ms if figure else None

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


def told(figures: Figures) -> list[dict[str, object]]:
    """As JSON has them."""
    return [
        cell._asdict() | {name: round(value, 3) for name, value in figure._asdict().items()}
        for cell, figure in figures.items()
    ]


def of_workload(figures: Figures, workload: str) -> dict[str, dict[int, Figure]]:
    """By contender and connections, ours first, the others as they were measured."""
    found: dict[str, dict[int, Figure]] = {}
    for cell, figure in sorted(figures.items(), key=lambda each: not each[0].contender.startswith(OURS)):
        if cell.workload == workload:
            found.setdefault(cell.contender, {})[cell.connections] = figure
    return found


def names(figures: Figures, name: Callable[[Cell], str | int]) -> list[str | int]:
    """Workloads, contenders or connections, each once."""
    return list(dict.fromkeys(map(name, figures)))


def _of(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None
