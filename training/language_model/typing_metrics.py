"""Evaluation of next-word suggestions by a simulated writer: top-1, top-3 and keystroke savings.

A writer types the words of a document one after another. Before each word, and after each typed letter, it is offered
three words; it accepts the word as soon as it is among them. Writers of several documents run in lockstep, so that a
model answers a batch of them at once.
"""

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import astuple, dataclass
from typing import Final, NamedTuple, TypeAlias

WORD: Final = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
OFFERED: Final = 3


class Query(NamedTuple):
    """A request for suggestions."""

    context: str  # before the word
    typed: str  # letters of the word so far
    history: str = ""  # earlier text of the same writer


Suggest: TypeAlias = Callable[[Sequence[Query]], Sequence[Sequence[str]]]
"""Queries -> up to OFFERED whole words for each, the likeliest first."""
Writer: TypeAlias = Generator[Query, Sequence[str], "Counts"]


@dataclass(frozen=True)
class Counts:
    """Results of one document, or the sum over several."""

    words: int = 0  # matches of WORD
    top1: int = 0
    top3: int = 0
    top1_folded: int = 0  # letter case ignored
    top3_folded: int = 0
    characters: int = 0  # keys without suggestions: letters, a space a word, signs; line breaks are not counted
    saved: int = 0  # of these keys by suggestions
    bits: float = 0.0  # -log2 p of the text and its end
    bytes: int = 0  # of UTF-8, with a last line end
    spaced_words: int = 0  # separated by white space

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def write(document: str, history: str = "") -> Writer:
    """Simulate a writer of `document`: yield a query, receive its suggestions; return the counts."""
    counts = Counts()
    position = 0
    for match in WORD.finditer(document):
        word, start = match[0], match.start()
        signs = sum(not character.isspace() for character in document[position:start])
        position = match.end()
        offered = yield Query(document[:start], "", history)
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
                offered = yield Query(document[:start], word[:typed], history)
        # The accepted suggestion inserts the space, which otherwise is a key.
        counts += first + Counts(characters=len(word) + 1 + signs, saved=len(word) - typed)
    return counts + Counts(characters=sum(not character.isspace() for character in document[position:]))


def measure(
    documents: Sequence[str],
    suggest: Suggest,
    *,
    histories: Sequence[str] | None = None,
    batch_size: int = 64,
    progress: Callable[[int], object] = lambda _: None,
) -> list[Counts]:
    """Return the counts of each document; `batch_size` writers run in lockstep, those of the longest ones first.

    `histories`: of each document's writer. `progress` is called with the characters of each finished document.
    """
    waiting = sorted(range(len(documents)), key=lambda number: len(documents[number]))
    writers: dict[int, Writer] = {}
    queries: dict[int, Query] = {}  # of the same writers
    results: dict[int, Counts] = {}

    def advance(number: int, offered: Sequence[str] | None) -> None:
        try:
            queries[number] = next(writers[number]) if offered is None else writers[number].send(offered)
        except StopIteration as stop:
            results[number] = stop.value
            writers.pop(number)
            queries.pop(number, None)
            progress(len(documents[number]))

    while waiting or writers:
        while waiting and len(writers) < batch_size:
            number = waiting.pop()
            writers[number] = write(documents[number], histories[number] if histories else "")
            advance(number, None)
        numbers = list(queries)
        for number, offered in zip(numbers, suggest(list(queries.values())), strict=True):
            advance(number, offered)
    return [results[number] for number in range(len(documents))]
