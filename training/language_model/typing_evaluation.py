"""The typing evaluation of a served language model on the validation texts of everyday English, by register."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm

from app.errors import CorpusError
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.families.language_model import Suggest as Payload
from app.runtime.predictor import answer_all
from training.corpora.documents import REGISTERS, TEMPLATED, documents, text_files
from training.language_model.typing_metrics import (
    OFFERED,
    Counts,
    Query,
    Suggest,
    confidence_interval,
    measure,
    register_means,
    total,
)

METRICS: Final = ("top1", "top3", "keystroke_savings")
BATCH_SIZE: Final = 32


@dataclass(frozen=True)
class TypingReport:
    """Results of a model: the metrics of `METRICS`, fractions, by source and by register."""

    sources: dict[str, list[Counts]]  # of each document

    def by_source(self, metric: str) -> dict[str, float]:
        """Return a metric of each source that has words."""
        sums = {name: total(counts) for name, counts in self.sources.items()}
        return {name: counts.metrics()[metric] for name, counts in sums.items() if counts.words}

    def by_register(self, metric: str) -> dict[str, float]:
        """Return the mean over the sources of each register."""
        return register_means(self.by_source(metric), REGISTERS)

    def macro(self, metric: str) -> float:
        """Return the mean over the registers, without assistant tasks, which are half templates."""
        found = [value for name, value in self.by_register(metric).items() if not TEMPLATED.issuperset(REGISTERS[name])]
        if not found:
            raise CorpusError("typing: expected a source of a register of everyday English, found none")
        return sum(found) / len(found)


def suggest_with(predictor: LanguageModelPredictor) -> Suggest:
    """Return a function that answers queries with the model's suggestions, as POST /next-word does."""

    def suggest(queries: Sequence[Query]) -> list[list[str]]:
        payloads = [Payload(query.context + query.typed, OFFERED, complete=bool(query.typed)) for query in queries]
        answers = answer_all(predictor, [predictor.prepare(payload) for payload in payloads])
        return [
            [_word(query, suggestion.text) for suggestion in answer.suggestions]
            for query, answer in zip(queries, answers, strict=True)
        ]

    return suggest


def _word(query: Query, suggestion: str) -> str:
    """Return the suggested word; a completion repeats the non-space characters before it, such as a bracket."""
    if not query.typed or not query.context or query.context[-1].isspace():
        return suggestion
    return suggestion.removeprefix(query.context.split()[-1])


def evaluate_typing(
    suggest: Suggest, folders: Sequence[Path], *, most_words: int | None, only: Sequence[str] = ()
) -> TypingReport:
    """Let simulated writers type the validation documents of each source, from its first on.

    `most_words`: about as many of each source, whole documents; `only`: these sources, all if empty. Raise CorpusError
    if a source is missing.
    """
    files = text_files(folders)["valid"]
    for name in only:
        if name not in files:
            raise CorpusError(f"source: expected one of {', '.join(sorted(files))}, found {name!r}")
    names = sorted(only or files)
    return TypingReport(
        {
            name: measure(documents(name, files[name]), suggest, batch_size=BATCH_SIZE, most_words=most_words)
            for name in tqdm(names, "typing", disable=None)
        }
    )


def table(report: TypingReport, seed: int = 1) -> str:
    """Return the results as a Markdown table, in percent: a row a register, then the macro mean and each source.

    A source's top-3 has a 95 % bootstrap interval over its documents.
    """
    generator = np.random.default_rng(seed)
    rows: list[tuple[str, ...]] = [("register", "top-1", "top-3", "keystroke savings"), ("---",) * 4]
    values: Mapping[str, dict[str, float]] = {metric: report.by_register(metric) for metric in METRICS}
    rows += [(name, *(_percent(values[metric][name]) for metric in METRICS)) for name in values["top1"]]
    rows.append(("**macro**", *(_percent(report.macro(metric)) for metric in METRICS)))
    rows.append(("source", "top-1", "top-3 (95 % interval)", "words"))
    for name, counts in report.sources.items():
        if words := total(counts).words:
            low, high = confidence_interval(counts, "top3", generator)
            metrics = total(counts).metrics()
            interval = f"{_percent(metrics['top3'])} ({_percent(low)} to {_percent(high)})"
            rows.append((name, _percent(metrics["top1"]), interval, f"{words:,}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"
