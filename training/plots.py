"""Plots of training runs and results, as PNG."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt

matplotlib.use("Agg")

from matplotlib import pyplot as plt

COLOURS = ("#8a94a6", "#1f5fbf", "#b3541e", "#3d8f5f")


def learning_curve(
    metrics: Sequence[dict[str, float]],
    path: Path,
    title: str,
    *,
    metric: str = "perplexity",
    parts: Sequence[str] = ("train", "valid"),
    logarithmic: bool = True,
) -> None:
    """Plot `metric` of each of `parts` against epochs, as PNG, with the learning rate.

    Entries are named part_metric; an epoch without one has no point.
    """
    epochs = [entry["epoch"] for entry in metrics]
    canvas, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for part, colour in zip(parts, COLOURS, strict=False):
        values = [entry.get(f"{part}_{metric}", math.nan) for entry in metrics]
        label = f"{part.replace('_', ' ')} (last {values[-1]:{'.1f' if logarithmic else '.4f'}})"
        axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=label)
    axes.set(title=title, xlabel="epoch", ylabel=metric, yscale="log" if logarithmic else "linear")
    if logarithmic:
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    rate = axes.twinx()
    rate.plot(epochs, [entry["learning_rate"] for entry in metrics], color="#c08a2e", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate", color="#c08a2e")
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def register_curves(metrics: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """Plot the validation bits a byte of each register against the pieces read, as PNG; `macro` is the thick line."""
    prefix = "valid_bits_per_byte/"
    canvas, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    pieces = [entry["pieces"] / 1e6 for entry in metrics]
    for name in sorted(metrics[-1], key=metrics[-1].__getitem__, reverse=True):  # the legend in the curves' order
        if name.startswith(prefix):
            values = [entry[name] for entry in metrics]
            width = 3 if name == f"{prefix}macro" else 1
            axes.plot(pieces, values, linewidth=width, label=f"{name.removeprefix(prefix)} ({values[-1]:.3f})")
    axes.set(title=title, xlabel="pieces read, millions", ylabel="bits a byte, validation")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def register_bars(
    series: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float]]]],
    path: Path,
    title: str,
    marks: Mapping[str, Mapping[str, float]],
) -> None:
    """Plot metrics by register as bars, as PNG: a panel a metric, a colour a model, black marks of an n-gram model.

    `series`: metric -> model -> register -> value and bounds of its interval; `marks`: metric -> register -> value.
    """
    canvas, panels = plt.subplots(1, len(series), figsize=(4.2 * len(series), 5.2), layout="constrained", squeeze=False)
    for axes, (metric, models) in zip(panels.flat, series.items(), strict=True):
        registers = list(next(iter(models.values())))
        height = 0.8 / len(models)
        for at, (model, found) in enumerate(models.items()):
            y = np.arange(len(registers)) + (at - (len(models) - 1) / 2) * height
            values, lows, highs = np.array([found[register] for register in registers]).T
            errors = np.maximum([values - lows, highs - values], 0)
            axes.barh(y, values, height, xerr=errors, color=COLOURS[at + 1], error_kw={"linewidth": 0.8}, label=model)
        if known := marks.get(metric, {}):
            axes.plot([*known.values()], [registers.index(name) for name in known], "k|", markersize=14, label="n-gram")
        axes.set_yticks(range(len(registers)), registers if axes is panels.flat[0] else [""] * len(registers))
        axes.invert_yaxis()
        axes.set_title(metric, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels.flat[0].legend(fontsize=8)
    canvas.suptitle(title)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def confusion_matrix(labels: Sequence[int], answers: Sequence[int], names: Sequence[str], path: Path) -> None:
    """Plot how often each class (row) was predicted as each (column), as PNG; the diagonal stays pale."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (np.asarray(labels), np.asarray(answers)), 1)
    errors = np.where(np.eye(len(names), dtype=bool), 0, counts)
    canvas, axes = plt.subplots(figsize=(6.5, 6), layout="constrained")
    axes.imshow(errors, cmap="Blues")
    for row, column in np.ndindex(counts.shape):
        dark = errors[row, column] > errors.max() / 2
        axes.text(
            column, row, str(counts[row, column] or ""), ha="center", va="center", color="white" if dark else "black"
        )
    axes.set(xlabel="answer", ylabel="label", xticks=range(len(names)), yticks=range(len(names)))
    axes.set_xticklabels(names)
    axes.set_yticklabels(names)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def contact_sheet(
    images: Sequence[npt.NDArray[np.uint8]], titles: Sequence[str], path: Path, columns: int = 10
) -> None:
    """Plot small images, each under its title, as PNG."""
    rows = max(math.ceil(len(images) / columns), 1)
    canvas, grid = plt.subplots(rows, columns, figsize=(columns * 0.9, rows * 1.1), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        axes.imshow(image, cmap="gray_r")
        axes.set_title(title, fontsize=8)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def reliability_diagram(confidence: Sequence[float], right: Sequence[bool], path: Path, bins: int = 15) -> None:
    """Plot the accuracy against the confidence, and the number of answers, by bin, as PNG."""
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    shares = np.bincount(index, np.asarray(right, float), minlength=bins) / np.maximum(counts, 1)
    canvas, (axes, below) = plt.subplots(2, 1, figsize=(5, 6), height_ratios=(3, 1), sharex=True, layout="constrained")
    axes.bar(edges[:-1], np.where(counts, shares, 0), 1 / bins, align="edge", color=COLOURS[1], edgecolor="white")
    axes.plot([0, 1], [0, 1], color=COLOURS[0], linestyle="--")
    axes.set(ylabel="accuracy", ylim=(0, 1))
    below.bar(edges[:-1], counts, 1 / bins, align="edge", color=COLOURS[0], edgecolor="white")
    below.set(xlabel="confidence", ylabel="answers", yscale="log", xlim=(0, 1))
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def caption_curves(metrics: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """Plot validation CIDEr against epochs, as PNG, with the training objectives: cost, then reward."""
    canvas, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    epochs, cider = ([entry[key] for entry in metrics] for key in ("epoch", "valid_cider"))
    axes.plot(epochs, cider, color=COLOURS[1], marker="o", markersize=3, label=f"CIDEr (best {max(cider):.1f})")
    axes.set(title=title, xlabel="epoch", ylabel="validation CIDEr")
    axes.grid(alpha=0.3)
    axes.legend()
    for key, offset, colour in (("train_cost", 1.0, COLOURS[0]), ("train_reward", 1.12, COLOURS[2])):
        trained = [entry for entry in metrics if key in entry]
        if trained:
            behind = axes.twinx()
            behind.spines["right"].set_position(("axes", offset))
            behind.plot([e["epoch"] for e in trained], [e[key] for e in trained], color=colour, linestyle=":")
            behind.set_ylabel(key.replace("_", " "), color=colour)
    canvas.savefig(path, dpi=110)
    plt.close(canvas)


def gallery(
    photographs: Sequence[npt.NDArray[np.uint8]], captions: Sequence[str], path: Path, columns: int = 4
) -> None:
    """Plot photographs, each over its caption, as PNG."""
    rows = math.ceil(len(photographs) / columns)
    canvas, grid = plt.subplots(rows, columns, figsize=(columns * 2.4, rows * 2.9), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, photograph, caption in zip(grid.flat, photographs, captions, strict=False):
        axes.imshow(photograph)
        axes.set_title(textwrap.fill(caption, 30), fontsize=8, y=-0.04, verticalalignment="top")
    canvas.savefig(path, dpi=80)
    plt.close(canvas)
