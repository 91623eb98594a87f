"""Tables and a plot of the results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

from tests.bench.serving.results import Limits, Ratio, Result, Results, names, of_workload

matplotlib.use("Agg")

from matplotlib import pyplot as plt

COLOURS: Final = {"ours": "#1f5fbf", "int8": "#3d8f5f", "torch": "#b3541e", "": "#8a94a6"}  # by engine
AT: Final = 16  # connections of the plot
HEAD: Final = ("requests/s", "p50 ms", "p99 ms", "CPU ms")


def tables(results: Results) -> dict[str, list[list[str]]]:
    """Return a table per workload: a head, and a row per contender."""
    found = {}
    for workload in names(results, lambda cell: cell.workload):
        rows = of_workload(results, str(workload))
        connections = sorted({count for row in rows.values() for count in row})
        head = ["", *(f"{name}, {count}" for count in connections for name in HEAD), "MiB", "failed"]
        found[str(workload)] = [head, *(_row(name, row, connections) for name, row in rows.items())]
    return found


def ratio_table(ratios: Sequence[Ratio]) -> list[list[str]]:
    """Return the table of required and measured ratios."""
    words = {True: "met", False: "not met", None: "not measured"}
    head = ["against", "required", "found", ""]
    return [
        head,
        *([each.what, f"{each.sign} {each.required:.3g}", _or_dash(each.found), words[each.met]] for each in ratios),
    ]


def limit_table(limits: Limits) -> list[list[str]]:
    """Return the table of the bare engines."""
    done = list(dict.fromkeys(name for found in limits.values() for name in found))
    head = ["in a loop, without HTTP", *done]
    cells = ((f"{found[name]:,.0f}" if name in found else "-" for name in done) for found in limits.values())
    return [head, *([engine, *row] for engine, row in zip(limits, cells, strict=True))]


def plain(table: Sequence[Sequence[str]]) -> str:
    """Format a table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Format a table as Markdown."""
    head, *rows = table
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))


def plot(results: Results, path: Path) -> None:
    """Write a PNG of requests per second at AT connections, one panel per workload."""
    panels = [
        (workload, {name: row[AT] for name, row in of_workload(results, str(workload)).items() if AT in row})
        for workload in names(results, lambda cell: cell.workload)
    ]
    canvas, grid = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 3.6), layout="constrained", squeeze=False)
    for axes, (workload, rows) in zip(grid.flat, panels, strict=True):
        rates = [row.per_second for row in rows.values()]
        bars = axes.barh(list(rows), rates, color=[_colour(name) for name in rows])
        axes.bar_label(bars, [f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" for rate in rates], padding=3, fontsize=8)
        axes.set(title=f"{workload}, {AT} connections", xlabel="requests a second", xscale="log")
        axes.set_xlim(1, 4 * max([*rates, 10]))
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x")
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def _row(name: str, results: dict[int, Result], connections: Sequence[int]) -> list[str]:
    cells = [text for count in connections for text in _cells(results.get(count))]
    memory, failed = max(each.pss_mib for each in results.values()), sum(each.failed for each in results.values())
    return [name, *cells, f"{memory:,.0f}", str(failed)]


def _cells(result: Result | None) -> list[str]:
    if result is None:
        return ["-"] * len(HEAD)
    rate = f"{result.per_second:,.0f}" if result.per_second >= 100 else f"{result.per_second:.1f}"
    return [rate, f"{result.p50_ms:.2f}", f"{result.p99_ms:.2f}", f"{result.cpu_ms:.2f}"]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _colour(name: str) -> str:
    if name.startswith("ours"):
        return COLOURS["ours"]
    return COLOURS["torch" if name == "plain" else name.rpartition("-")[2] if "-" in name else ""]
