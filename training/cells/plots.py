"""Plots of the comparison, with one colour a cell in all of them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from app.models.recurrent import Cell
from training.cells.adding import BASELINE, SOLVED
from training.cells.plan import Measured
from training.publishing import CELL_NAMES

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS: dict[Cell, str] = {
    "rnn": "#b3261e",
    "lstm": "#1f5fbf",
    "peephole": "#3d8f5f",
    "cifg": "#c08a2e",
    "gru": "#7b4fa3",
    "peephole-cifg": "#2aa1b3",
}
LEAST = 1e-16  # gradient that is drawn
POINTS = 40  # of a curve that is drawn smoothed


def perplexities(measured: Measured, path: Path) -> None:
    """Training perplexity against windows, the mean over the seeds, as PNG."""
    canvas, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    _curves(axes, measured, 1)
    axes.set(xlabel="windows read", ylabel="training perplexity", yscale="log", ylim=(None, 1000))
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    _finish(canvas, [axes], path)


def digit_costs(measured: Measured, path: Path) -> None:
    """Training cost against steps, smoothed, the mean over the seeds, as PNG."""
    canvas, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    longest = max(len(results["curve"]) for results in measured.values())
    _curves(axes, measured, max(longest // POINTS, 1))
    axes.set(xlabel="steps", ylabel="training cost, nats", yscale="log")
    _finish(canvas, [axes], path)


def adding_errors(measured: Measured, path: Path) -> None:
    """Error on unseen sequences against steps, a panel a length, as PNG."""
    lengths = sorted({int(job.variant.removeprefix("length-")) for job in measured})
    canvas, panels = plt.subplots(
        1, len(lengths), figsize=(5.2 * len(lengths), 4.2), layout="constrained", sharey=True, squeeze=False
    )
    for axes, length in zip(panels[0], lengths, strict=True):
        for job, results in measured.items():
            if job.variant == f"length-{length}":
                steps, errors = zip(*results["curve"], strict=True)
                axes.plot(steps, errors, **_style(job.cell))
        for level, name in ((BASELINE, "always 1"), (SOLVED, "solved")):
            axes.axhline(level, color="#8a94a6", linestyle=":", linewidth=1)
            axes.annotate(
                name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="#5d6675"
            )
        axes.set(title=f"length {length}", xlabel="steps", yscale="log")
    panels[0][0].set_ylabel("mean squared error, unseen sequences")
    _finish(canvas, panels[0], path)


def gradients(measured: Measured, path: Path) -> None:
    """Gradient norms against distance, a row a task, before and after training, as PNG."""
    tasks = sorted({job.variant for job in measured})
    canvas, panels = plt.subplots(
        len(tasks), 2, figsize=(10, 3.8 * len(tasks)), layout="constrained", sharey="row", squeeze=False
    )
    for row, variant in zip(panels, tasks, strict=True):
        for axes, when, title in zip(row, ("initial", "trained"), ("before training", "trained"), strict=True):
            for job, results in measured.items():
                if job.variant == variant:
                    norms = [norm if norm > 0 else math.nan for norm in results[when]]  # the axis is logarithmic
                    axes.plot(norms, **_style(job.cell))
            axes.set(title=f"{task(variant)}, {title}", xlabel="distance k, steps", yscale="log", ylim=(LEAST, None))
        row[0].set_ylabel("|d cost(t) / d h(t - k)|")
    _finish(canvas, [*panels.flat], path)


def task(variant: str) -> str:
    """Return the title of a task on gradients."""
    kind, number = variant.split("-")
    return f"adding problem, length {number}" if kind == "length" else "Penn Treebank"


def _style(cell: Cell) -> dict[str, Any]:
    """Return the style of a curve: dashed with peepholes, so that an equal curve beneath is visible."""
    return {"color": COLOURS[cell], "linestyle": "--" if "peephole" in cell else "-", "label": CELL_NAMES[cell]}


def _curves(axes: Axes, measured: Measured, points: int) -> None:
    """Plot the mean over each cell's seeds, averaged over `points` values."""
    for cell in COLOURS:
        curves = [results["curve"] for job, results in measured.items() if job.cell == cell]
        if curves:
            steps, values = (np.mean([[point[axis] for point in curve] for curve in curves], 0) for axis in (0, 1))
            axes.plot(_thinned(steps, points), _thinned(values, points), **_style(cell))


def _thinned(values: np.ndarray[Any, Any], points: int) -> np.ndarray[Any, Any]:
    """Return the means of `points` values each, without an incomplete group at the end."""
    kept = len(values) // points * points
    means: np.ndarray[Any, Any] = values[:kept].reshape(-1, points).mean(1)
    return means


def _finish(canvas: Figure, panels: Sequence[Axes], path: Path) -> None:
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=9)
    canvas.savefig(path, dpi=90)
    plt.close(canvas)
