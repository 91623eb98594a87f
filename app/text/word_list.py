"""A sorted list of words, searchable by prefix."""

from bisect import bisect_left
from collections.abc import Iterable

import numpy as np

from app.text.tokenizer import Ids

_LAST_CHARACTER = "\U0010ffff"


class WordList:
    """Words in alphabetical order, searchable by prefix."""

    def __init__(self, words: Iterable[tuple[str, int]]) -> None:
        """`words`: as they are written, with their ids."""
        ordered = sorted(words)
        self._words = [word for word, _ in ordered]
        self._ids = np.array([number for _, number in ordered], np.int64)
        self._ids.setflags(write=False)  # `starting` returns views
        self.longest = max(map(len, self._words), default=0)

    def starting(self, prefix: str) -> Ids:
        """Return the ids of the words that start with `prefix`."""
        first = bisect_left(self._words, prefix)
        return self._ids[first : bisect_left(self._words, prefix + _LAST_CHARACTER, first)]
