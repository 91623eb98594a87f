"""Evaluation of next-word suggestions by a simulated writer: top-1, top-3 and keystroke savings.

A writer types the words of a document one after another. Before each word, and after each typed letter, it is offered
three words; it accepts the word as soon as it is among them. Writers of several documents run in lockstep, so that a
model answers a batch of them at once.
"""

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

WORD: Final = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
OFFERED: Final = 3
BOOTSTRAP: Final = 1000


class Query(NamedTuple):
    """A request for suggestions: the text before the word, and the letters of the word typed so far."""

    context: str
    typed: str


Suggest: TypeAlias = Callable[[Sequence[Query]], Sequence[Sequence[str]]]
"""Queries -> up to OFFERED whole words for each, the likeliest first."""
Writer: TypeAlias = Generator[Query, Sequence[str], "Counts"]


@dataclass(frozen=True)
class Counts:
    """Results of one document, or the sum over several."""

    words: int = 0
    top1: int = 0
    top3: int = 0
    top1_folded: int = 0  # letter case ignored
    top3_folded: int = 0
    keys: int = 0  # pressed by the writer
    characters: int = 0  # keys without suggestions: letters, a space a word, signs; line breaks are not counted

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def metrics(self) -> dict[str, float]:
        """Return top-1 and top-3 accuracy, also with case ignored, and keystroke savings, as fractions.

        Raise ValueError without words.
        """
        if not self.words:
            raise ValueError("words: expected at least one, found none")
        return {
            "top1": self.top1 / self.words,
            "top3": self.top3 / self.words,
            "top1_folded": self.top1_folded / self.words,
            "top3_folded": self.top3_folded / self.words,
            "keystroke_savings": 1 - self.keys / self.characters,
        }


def write(document: str) -> Writer:
    """Simulate a writer of `document`: yield a query, receive its suggestions; return the counts."""
    counts = Counts()
    position = 0
    for match in WORD.finditer(document):
        word, start = match[0], match.start()
        signs = sum(not character.isspace() for character in document[position:start])
        position = match.end()
        offered = yield Query(document[:start], "")
        folded = [suggestion.lower() for suggestion in offered[:OFFERED]]
        first = Counts(
            words=1,
            top1=word in offered[:1],
            top3=word in offered[:OFFERED],
            top1_folded=word.lower() in folded[:1],
            top3_folded=word.lower() in folded,
        )
        typed = 0
        while typed < len(word) and word not in offered[:OFFERED]:
            typed += 1
            if typed < len(word):
                offered = yield Query(document[:start], word[:typed])
        keys = typed + 1  # the accepted suggestion inserts the space, which otherwise is a key
        counts += first + Counts(keys=keys + signs, characters=len(word) + 1 + signs)
    signs = sum(not character.isspace() for character in document[position:])
    return counts + Counts(keys=signs, characters=signs)


def measure(
    documents: Iterable[str], suggest: Suggest, *, batch_size: int = 32, most_words: int | None = None
) -> list[Counts]:
    """Return the counts of each document that was started, in order; `batch_size` writers run in lockstep.

    `most_words`: no document is started once the writers have typed as many words.
    """
    waiting = enumerate(documents)
    writers: dict[int, Writer] = {}
    queries: dict[int, Query] = {}  # of the same writers
    results: dict[int, Counts] = {}
    typed = 0  # words of the finished documents

    def advance(number: int, offered: Sequence[str] | None) -> None:
        nonlocal typed
        try:
            queries[number] = next(writers[number]) if offered is None else writers[number].send(offered)
        except StopIteration as stop:
            results[number] = stop.value
            typed += stop.value.words
            writers.pop(number)
            queries.pop(number, None)

    while True:
        while len(writers) < batch_size and (most_words is None or typed < most_words):
            number, document = next(waiting, (-1, ""))
            if number < 0:
                break
            writers[number] = write(document)
            advance(number, None)
        if not writers:
            return [results[number] for number in sorted(results)]
        numbers = list(queries)
        for number, offered in zip(numbers, suggest(list(queries.values())), strict=True):
            advance(number, offered)


def total(documents: Iterable[Counts]) -> Counts:
    """Return the sum over documents."""
    return sum(documents, Counts())


def confidence_interval(
    documents: Sequence[Counts], metric: str, generator: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Return a percentile bootstrap interval of a metric of `Counts.metrics`, resampling documents (Efron 1979)."""
    rows = np.array([astuple(counts) for counts in documents if counts.words], np.int64)
    samples = [
        Counts(*rows[generator.integers(len(rows), size=len(rows))].sum(0).tolist()).metrics()[metric]
        for _ in range(BOOTSTRAP)
    ]
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def register_means(sources: Mapping[str, float], registers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the mean over the sources of each register; registers without a measured source are left out."""
    found = {name: [sources[source] for source in members if source in sources] for name, members in registers.items()}
    return {name: sum(values) / len(values) for name, values in found.items() if values}


def auc(genuine: Sequence[float], spoilt: Sequence[float]) -> float:
    """Return the area under the ROC curve of separating spoilt from genuine text by a higher score (Mann-Whitney U)."""
    scores: npt.NDArray[np.float64] = np.concatenate([genuine, spoilt])
    _, inverse, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[inverse]  # ties share their mean rank
    above = ranks[len(genuine) :].sum() - len(spoilt) * (len(spoilt) + 1) / 2
    return float(above / (len(genuine) * len(spoilt)))
