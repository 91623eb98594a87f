"""Pictures for people: what a run learned."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt


def learning_curve(metrics: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """Perplexity on training and validation text against epochs, as PNG; the rate behind it."""
    epochs = [entry["epoch"] for entry in metrics]
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, colour in (("train", "#8a94a6"), ("valid", "#1f5fbf")):
        values = [entry[f"{name}_perplexity"] for entry in metrics]
        axes.plot(epochs, values, color=colour, marker="o", markersize=3, label=f"{name} (last {values[-1]:.1f})")
    axes.set(title=title, xlabel="epoch", ylabel="perplexity", yscale="log")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    rate = axes.twinx()
    rate.plot(epochs, [entry["learning_rate"] for entry in metrics], color="#c08a2e", linestyle=":", linewidth=1)
    rate.set_ylabel("learning rate", color="#c08a2e")
    figure.savefig(path, dpi=110)
    plt.close(figure)
