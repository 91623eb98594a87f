"""Share of everyday beginnings after which an accepted word is among three suggestions.

    python -m tests.bench.beginnings [--store models_store] [--model everyday]

Prints the beginnings that fail, with their suggestions; the last line is JSON.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from app import bundle as bundles
from app.runtime.families.language_model import LanguageModelPredictor, Suggest
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all


class Beginning(NamedTuple):
    """The beginning of a message, and the next words that a person accepts."""

    text: str
    accepted: frozenset[str]


def read() -> list[Beginning]:
    """Read beginnings.txt."""
    lines = Path(__file__).with_name("beginnings.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split(" | ") for line in lines if not line.startswith("#"))
    return [Beginning(text, frozenset(accepted.split())) for text, accepted in pairs]


def suggested(predictor: LanguageModelPredictor, beginnings: list[Beginning]) -> list[list[str]]:
    """Return three suggestions after each beginning and a space."""
    examples = [predictor.prepare(Suggest(f"{beginning.text} ", top_k=3)) for beginning in beginnings]
    return [[word.text for word in answer.suggestions] for answer in answer_all(predictor, examples)]


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description="Suggestions after everyday beginnings.")
    arguments.add_argument("--store", type=Path, default=Path("models_store"))
    arguments.add_argument("--model", default="everyday")
    options = arguments.parse_args()
    predictor = load_predictor(
        bundles.read(options.store / options.model / bundles.current(options.store, options.model))
    )
    beginnings = read()
    found = suggested(predictor, beginnings)
    failed = [(one, words) for one, words in zip(beginnings, found, strict=True) if one.accepted.isdisjoint(words)]
    for beginning, words in failed:
        print(f"{beginning.text} ... {', '.join(words)}")
    share = 1 - len(failed) / len(beginnings)
    print(json.dumps({"model": options.model, "beginnings": len(beginnings), "share": round(share, 4)}))


if __name__ == "__main__":
    main()
