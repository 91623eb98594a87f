"""Tables and intervals of the typing evaluation: by source, by register and their mean, beside n-gram models."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from training import plots
from training.corpora.documents import REGISTERS, TEMPLATED, register_means
from training.language_model.typing_metrics import Counts

Floats = npt.NDArray[np.float64]

BOOTSTRAP: Final = 1000
_COLUMNS: Final = [field.name for field in fields(Counts)]


class Metric(NamedTuple):
    """The ratio of two sums of `Counts`; `of` is applied to it."""

    part: str
    whole: str
    of: Callable[[Floats], Floats] = np.positive
    digits: str = ".1f"

    def __call__(self, sums: Floats) -> Floats:
        """Return the metric (...) of sums (..., fields of Counts); NaN where there is nothing to divide by."""
        with np.errstate(invalid="ignore"):
            return self.of(sums[..., _COLUMNS.index(self.part)] / sums[..., _COLUMNS.index(self.whole)])


METRICS: Final[Mapping[str, Metric]] = {
    "top-1": Metric("top1", "words", lambda share: 100 * share),
    "top-3": Metric("top3", "words", lambda share: 100 * share),
    "top-1, any case": Metric("top1_folded", "words", lambda share: 100 * share),
    "top-3, any case": Metric("top3_folded", "words", lambda share: 100 * share),
    "keystroke savings": Metric("saved", "characters", lambda share: 100 * share),
    "bits a byte": Metric("bits", "bytes", digits=".3f"),
    "word perplexity": Metric("bits", "spaced_words", np.exp2, digits=",.0f"),
}

NGRAMS: Final[Mapping[str, Sequence[float]]] = {
    "chat": (20.8, 33.8, 53.4, 1.542, 258),
    "e-mail": (17.3, 27.3, 50.3, 1.762, 1244),
    "SMS": (13.1, 20.8, 41.4, 2.422, 5585),
    "forum": (15.8, 26.7, 46.9, 1.938, 1985),
    "blogs": (14.5, 25.1, 45.9, 1.913, 1349),
    "sentences": (23.7, 37.5, 56.2, 1.356, 127),
    "reviews": (18.5, 30.1, 51.5, 1.688, 692),
    "spoken": (19.4, 31.9, 52.5, 1.562, 350),
    "news": (18.7, 29.4, 51.2, 1.676, 1025),
    "edited": (17.6, 27.6, 47.3, 1.790, 1256),
    "assistant tasks": (32.1, 45.9, 58.0, 1.401, 154),
}
"""Modified Kneser-Ney on the training texts of everyday2 and everyday2-more, 51 million words, each line alone.

top-1, top-3 and keystroke savings of a 4-gram over 113,876 words and signs; bits a byte and word perplexity of a 5-gram
over 16,384 pieces.
"""
_NGRAM_METRICS: Final = ("top-1", "top-3", "keystroke savings", "bits a byte", "word perplexity")


class Interval(NamedTuple):
    """A metric and its 95 % percentile bootstrap interval (Efron 1979), documents resampled."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TypingReport:
    """Results of a model: the counts of each document by source."""

    sources: Mapping[str, Sequence[Counts]]

    def by_register(self, metric: str, seed: int = 1) -> dict[str, Interval]:
        """Return a metric of each register, the mean over its sources, and `macro`, the mean over registers.

        Documents are resampled within their source. Sources without what the metric divides by are left out.
        """
        values, samples = dict[str, float](), dict[str, Floats]()
        for at, (name, counts) in enumerate(sorted(self.sources.items())):
            rows = np.array([astuple(count) for count in counts], np.float64).reshape(len(counts), len(_COLUMNS))
            value = float(METRICS[metric](rows.sum(0)))
            if np.isfinite(value):
                drawn = np.random.default_rng([seed, at]).multinomial(
                    len(rows), np.full(len(rows), 1 / len(rows)), size=BOOTSTRAP
                )
                values[name], samples[name] = value, METRICS[metric](drawn @ rows)
        if not values:
            return {}
        means = [register_means({name: sample[at] for name, sample in samples.items()}) for at in range(BOOTSTRAP)]
        bounds = {name: np.nanquantile([mean[name] for mean in means], (0.025, 0.975)) for name in means[0]}
        return {name: Interval(value, *map(float, bounds[name])) for name, value in register_means(values).items()}

    def macro(self) -> dict[str, float]:
        """Return the mean over registers of each metric."""
        found = {name: self.by_register(name) for name in METRICS}
        return {name: registers["macro"].value for name, registers in found.items() if registers}


def plot(reports: Mapping[str, TypingReport], path: Path, title: str) -> None:
    """Plot top-3, keystroke savings and bits a byte of each model by register, as PNG."""
    series = {
        metric: {model: found for model, report in reports.items() if (found := report.by_register(metric))}
        for metric in ("top-3", "keystroke savings", "bits a byte")
    }
    series = {metric: models for metric, models in series.items() if models}
    registers = {register for models in series.values() for found in models.values() for register in found}
    plots.register_bars(series, path, title, {metric: ngrams(metric, registers) for metric in series})


def ngrams(metric: str, registers: Collection[str]) -> dict[str, float]:
    """Return the n-gram models' results for these registers, and their mean as `macro`; none for another metric."""
    if metric not in _NGRAM_METRICS:
        return {}
    column = _NGRAM_METRICS.index(metric)
    found = {register: values[column] for register, values in NGRAMS.items() if register in registers}
    counted = [value for register, value in found.items() if TEMPLATED.isdisjoint(REGISTERS[register])]
    return found | ({"macro": sum(counted) / len(counted)} if counted else {})


def table(report: TypingReport) -> str:
    """Return the results by register as a Markdown table, with 95 % intervals, the n-gram models' results behind."""
    columns = {name: found for name in METRICS if (found := report.by_register(name))}
    rows = [["register", *columns], ["---"] * (1 + len(columns))]
    for register in next(iter(columns.values()), {}):
        cells = []
        for metric, found in columns.items():
            digits, (value, low, high) = METRICS[metric].digits, found[register]
            known = ngrams(metric, found).get(register)
            behind = "" if known is None else f"; {known:{digits}}"
            cells.append(f"{value:{digits}} ({low:{digits}} to {high:{digits}}){behind}")
        rows.append([f"**{register}**" if register == "macro" else register, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
