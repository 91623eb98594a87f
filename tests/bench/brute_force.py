"""Search for next words against brute force: the commonest words of the training texts, scored one by one.

    python -m tests.bench.brute_force --data FOLDER [--store models_store] [--model everyday] [--positions 500]

At each position, drawn with a seed from the validation texts, the three suggestions and their probabilities are
compared with the three likeliest of all words. A word is scored piece by piece; it is left out once its first pieces
are less likely than the third suggestion, since the whole word is no likelier. The last line is JSON.
"""

import argparse
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from tqdm import tqdm

from app import bundle as bundles
from app.runtime.families.language_model import LanguageModelPredictor, Suggest
from app.runtime.predictor import Resources, answer_all
from app.runtime.recurrent_engine import Floats, RecurrentEngine, Segment
from app.text.blocked_words import BLOCKED_WORDS
from app.text.subword import SubwordTokenizer
from training.corpora.documents import documents, text_files
from training.language_model.typing_metrics import WORD

WORDS: Final = 50_000
OFFERED: Final = 3
TOLERANCE: Final = 1e-4  # of a probability
TOGETHER: Final = 256  # words read at a time


class BruteForce:
    """Probabilities of whole words after a context."""

    def __init__(self, engine: RecurrentEngine, tokenizer: SubwordTokenizer, words: Sequence[str]) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._everything = np.arange(engine.vocabulary_size)
        self._inner = tokenizer.word_pieces.inner.ids
        self._words = {word: self._spellings(word) for word in words}

    def likeliest(self, text: str, least: float, others: Sequence[str]) -> dict[str, float]:
        """Return the words after `text` with a probability of `least` or more, of the list and `others`."""
        prefix = self._tokenizer.prefix(text, complete=False)
        start = self._engine.run([Segment(self._engine.initial_state(), [self._tokenizer.end])])[0].state
        (before,) = self._read([(start, prefix.ids)])
        spellings = [*self._words.values(), *map(self._spellings, others)]
        places = (0, 1) if prefix.glued else (0,)  # after a sign a word may begin without a space
        open_words = {some[place]: (0.0, before) for some in spellings for place in places}
        found: dict[str, float] = {}
        for size in range(1, 1 + max(map(len, open_words))):
            read: dict[tuple[int, ...], tuple[Floats, float]] = {}
            for pieces, (value, (state, following)) in open_words.items():
                grown = value + float(following[pieces[size - 1]])
                if math.exp(grown) >= least:
                    read[pieces[:size]] = state, grown
            after = dict(
                zip(read, self._read([(state, pieces[-1:]) for pieces, (state, _) in read.items()]), strict=True)
            )
            for pieces in [pieces for pieces in open_words if pieces in after]:
                _, following = after[pieces]
                goes_on = float(np.exp(following[self._inner]).sum(dtype=np.float64))
                probability = math.exp(read[pieces][1]) * (1 - goes_on)
                word = prefix.text(pieces)
                if word is not None and word.casefold() not in BLOCKED_WORDS:
                    found[word] = max(found.get(word, 0), probability)
            open_words = {
                pieces: (read[pieces[:size]][1], after[pieces[:size]])
                for pieces in open_words
                if len(pieces) > size and pieces[:size] in after
            }
            if not open_words:
                break
        return {word: value for word, value in found.items() if value >= least}

    def _spellings(self, word: str) -> tuple[tuple[int, ...], ...]:
        """Return the word's pieces after a space, and those without one."""
        return tuple(tuple(self._tokenizer.ids(text, inside_line=True)) for text in (f" {word}", word))

    def _read(self, rows: Sequence[tuple[Floats, Sequence[int]]]) -> list[tuple[Floats, Floats]]:
        """Return the state and the log-probabilities (V,) after each state and pieces."""
        found = []
        for start in range(0, len(rows), TOGETHER):
            segments = [
                Segment(state, pieces, candidates=self._everything) for state, pieces in rows[start : start + TOGETHER]
            ]
            for reading in self._engine.run(segments):
                assert reading.candidates is not None
                found.append((reading.state, reading.candidates.copy()))
        return found


def commonest(folders: Sequence[Path], count: int) -> list[str]:
    """Return the commonest words of the training texts, in exact case."""
    counts: Counter[str] = Counter()
    for name, paths in text_files(folders)["train"].items():
        for text in documents(name, paths):
            counts.update(WORD.findall(text))
    return [word for word, _ in counts.most_common(count)]


def positions(folders: Sequence[Path], count: int, seed: int = 1) -> Iterator[str]:
    """Draw the texts before words of validation documents, the sources in turn."""
    draw = random.Random(seed)
    files = text_files(folders)["valid"]
    texts = [list(documents(name, files[name])) for name in sorted(files)]
    for number in range(count):
        text = draw.choice(texts[number % len(texts)])
        starts = [match.start() for match in WORD.finditer(text)]
        yield text[: draw.choice(starts or [0])]


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description="Search for next words against brute force.")
    arguments.add_argument("--data", type=Path, nargs="+", required=True)
    arguments.add_argument("--store", type=Path, default=Path("models_store"))
    arguments.add_argument("--model", default="everyday")
    arguments.add_argument("--positions", type=int, default=500)
    options = arguments.parse_args()
    bundle = bundles.read(options.store / options.model / bundles.current(options.store, options.model))
    predictor = LanguageModelPredictor.open(bundle, bundle.manifest.served, Resources())
    tokenizer = predictor.tokenizer
    assert isinstance(tokenizer, SubwordTokenizer)
    engine = RecurrentEngine.open(bundle, bundle.manifest.served)
    brute_force = BruteForce(engine, tokenizer, commonest(options.data, WORDS))
    different, largest = 0, 0.0
    for text in tqdm(positions(options.data, options.positions), total=options.positions, disable=None):
        (answer,) = answer_all(predictor, [predictor.prepare(Suggest(text, top_k=OFFERED, adapt=False))])
        offered = {one.text: one.probability for one in answer.suggestions}
        least = min(offered.values(), default=0) - TOLERANCE
        found = brute_force.likeliest(text, max(least, TOLERANCE), list(offered))
        expected = dict(sorted(found.items(), key=lambda pair: -pair[1])[:OFFERED])
        largest = max([largest, *(abs(offered[word] - found.get(word, 0)) for word in offered)])
        if missed := {word for word in expected.keys() - offered.keys() if expected[word] > least + 2 * TOLERANCE}:
            different += 1
            print(f"...{text[-60:]!r}: {offered}; better: { {word: expected[word] for word in missed} }")
    print(json.dumps({"positions": options.positions, "different": different, "largest_difference": largest}))


if __name__ == "__main__":
    main()
