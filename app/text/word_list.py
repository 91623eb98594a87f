"""A sorted list of written words, searchable by prefix."""

from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

import numpy as np

from app.text.tokenizer import Ids

_LAST_CHARACTER = "\U0010ffff"
NO_IDS: Final = np.empty(0, np.int64)


class WordList:
    """Written words in alphabetical order, for finding those that begin with a prefix."""

    def __init__(self, words: Iterable[tuple[str, int]]) -> None:
        """Words as they are written, with their ids."""
        ordered = sorted(words)
        self._words = [word for word, _ in ordered]
        self._ids = np.array([place for _, place in ordered], np.int64)
        self._ids.setflags(write=False)  # parts of it are given away
        self.longest = max(map(len, self._words), default=0)

    def starting(self, prefix: str) -> Ids:
        """Ids of the words that begin with `prefix`."""
        first = bisect_left(self._words, prefix)
        return self._ids[first : bisect_left(self._words, prefix + _LAST_CHARACTER, first)]
