"""Bits a byte of writers' texts with the cache of their own words, against those of the network alone.

    python -m tests.bench.adaptation --data FOLDER [--store models_store] [--model everyday] [--fit]

A text stands for a writer: a document of a blog, or as many messages in a row as make 1,500 words. Printed per source:
the ratio adapted/static over whole texts, over their second halves with the first as history, and over their first 60
words; `--fit` searches for better weights. The last line is JSON.
"""

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from app import bundle as bundles
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.loading import load_predictor
from app.runtime.recurrent_engine import RecurrentEngine, Segment
from app.runtime.writer_cache import Weights
from app.text import Tokenizer
from training.corpora.documents import documents, text_files

SOURCES: Final = {"blogs": 20, "aeslc": 9, "sms": 9}  # texts of each
WORDS: Final = 1500  # of one text of several messages
CHUNK: Final = 32  # tokens of a step

Statistics = npt.NDArray[np.float64]


class Row(NamedTuple):
    """Counts before a word of one or several tokens."""

    network: float  # log-probability, nats
    second_half: bool
    seen: int  # words before it
    unigram: float  # its share of them
    after_last: int  # words after the same token
    bigram: float
    after_both: int  # words after the same two tokens
    trigram: float


def texts(folder: Path, source: str, most: int) -> list[list[str]]:
    """Return texts of a source, each a list of documents."""
    found: list[list[str]] = []
    several: list[str] = []
    for document in documents(source, text_files([folder])["valid"][source]):
        if source == "blogs":
            several = [document] if 500 <= len(document.split()) <= 2500 else []
        else:
            several.append(document)
        if several and (source == "blogs" or sum(len(one.split()) for one in several) >= WORDS):
            found.append(several)
            several = []
    return found[:: max(1, len(found) // most)][:most] if source != "blogs" else found[:most]


def scores(engine: RecurrentEngine, start: npt.NDArray[np.float32], ids: list[int]) -> Iterator[float]:
    """Yield the log-probability of each token."""
    state = start
    for begin in range(0, len(ids), CHUNK):
        (reading,) = engine.run([Segment(state, ids[begin : begin + CHUNK], score=True)])
        state = reading.state
        yield from reading.scores


def statistics(predictor: LanguageModelPredictor, tokenizer: Tokenizer, text: list[str]) -> Iterator[Row]:
    """Yield what was known before each word of a text."""
    engine = predictor._engine  # noqa: SLF001
    (after_end,) = engine.run([Segment(engine.initial_state(), [tokenizer.end])])
    encoded = [[token.id for token in tokenizer.encode(one, ended=True) if token] for one in text]
    network = np.array([value for ids in encoded for value in scores(engine, after_end.state, ids)])
    ids = np.array([token for one in encoded for token in one])
    starts = np.flatnonzero(tokenizer.begins(ids))
    words = [tuple(part.tolist()) for part in np.split(ids, starts[1:])]
    counts: dict[tuple[int, ...], Counter[tuple[int, ...]]] = defaultdict(Counter)  # by the tokens before
    totals = Counter[tuple[int, ...]]()
    for word, start, value in zip(words, starts.tolist(), np.add.reduceat(network, starts).tolist(), strict=True):
        last, both = tuple(ids[max(0, start - 1) : start].tolist()), tuple(ids[max(0, start - 2) : start].tolist())
        known = [(totals[there], counts[there][word] / max(1, totals[there])) for there in ((), last, both)]
        (seen, unigram), (after_last, bigram), (after_both, trigram) = known
        yield Row(value, start >= len(ids) / 2, seen, unigram, after_last, bigram, after_both, trigram)
        for there in {(), last, both}:
            totals[there] += 1
            counts[there].update(word[:size] for size in range(1, len(word) + 1))


def ratio(weights: Weights, rows: Statistics) -> float:
    """Return the bits of the words with the cache over those of the network alone."""
    network, _, seen, unigram, after_last, bigram, after_both, trigram = rows.T
    third = weights.trigram * after_both / (after_both + weights.trigram_doubt)
    second = (1 - third) * weights.bigram * after_last / (after_last + weights.bigram_doubt)
    first = (1 - third - second) * weights.unigram * seen / (seen + weights.unigram_doubt)
    adapted = (1 - first - second - third) * np.exp(network) + first * unigram + second * bigram + third * trigram
    return float(np.log(adapted).sum() / network.sum())


def fit(by_source: dict[str, Statistics]) -> Weights:
    """Return the weights with the least mean ratio over the sources."""

    def cost(values: npt.NDArray[np.float64]) -> float:
        return float(np.mean([ratio(Weights(*np.abs(values) + 1e-9), rows) for rows in by_source.values()]))

    found = minimize(cost, astuple(Weights()), method="Nelder-Mead", options={"maxiter": 1500})
    return Weights(*(round(float(abs(value)), 3) for value in found.x))


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description="The cache of a writer's words, in bits a byte.")
    arguments.add_argument("--data", type=Path, required=True, help="folder of everyday2's texts")
    arguments.add_argument("--store", type=Path, default=Path("models_store"))
    arguments.add_argument("--model", default="everyday")
    arguments.add_argument("--fit", action="store_true")
    options = arguments.parse_args()
    bundle = bundles.read(options.store / options.model / bundles.current(options.store, options.model))
    predictor = load_predictor(bundle)
    rows = {
        source: np.array(
            [
                row
                for text in texts(options.data, source, most)
                for row in statistics(predictor, predictor.tokenizer, text)
            ]
        )
        for source, most in SOURCES.items()
    }
    weights = fit(rows) if options.fit else Weights.of(bundle.manifest.calibration, bundle.folder) or Weights()
    half, seen = (list(Row._fields).index(name) for name in ("second_half", "seen"))
    found = {
        source: {
            "words": len(some),
            "whole": round(ratio(weights, some), 4),
            "second_half": round(ratio(weights, some[some[:, half] > 0]), 4),
            "first_60": round(ratio(weights, some[some[:, seen] < 60]), 4),
        }
        for source, some in rows.items()
    }
    for source, values in found.items():
        print(source, *(f"{name} {value}" for name, value in values.items()))
    print({field.name: getattr(weights, field.name) for field in fields(weights)})
    print(json.dumps({"ratios": found, "weights": asdict(weights)}))


if __name__ == "__main__":
    main()
