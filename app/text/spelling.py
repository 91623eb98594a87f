"""Spelling model: the cost of the letters of words outside a closed vocabulary."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Final

ORDER: Final = 3  # characters of the longest n-grams
LONGEST: Final = 64  # characters of a word that are read; those after them cost the mean of these
_START, _END = "\ud800", "\udfff"  # lone surrogates, which no spelling in UTF-8 has
_CHARACTERS: Final = 0x110000  # all alike where no n-gram is known


class Spelling:
    """An n-gram model of characters with Witten-Bell's interpolation (Chen & Goodman 1999), over distinct words.

    Every string has a probability, its end included; a character that no word has costs 20 bits and more.
    """

    def __init__(self, words: Iterable[str]) -> None:
        grams: Counter[str] = Counter()
        for word in words:
            padded = _START * (ORDER - 1) + word + _END
            for size in range(1, ORDER + 1):
                grams.update(padded[at : at + size] for at in range(ORDER - size, len(padded) - size + 1))
        self._grams = grams
        self._totals: Counter[str] = Counter()  # of n-grams by all but their last character
        self._kinds: Counter[str] = Counter()
        for gram, count in grams.items():
            self._totals[gram[:-1]] += count
            self._kinds[gram[:-1]] += 1

    def log_probability(self, word: str) -> float:
        """Return the log-probability of a spelling, in nats."""
        if len(word) > LONGEST:
            return self.log_probability(word[:LONGEST]) * len(word) / LONGEST
        padded = _START * (ORDER - 1) + word + _END
        return sum(math.log(self._probability(padded[at - ORDER + 1 : at + 1])) for at in range(ORDER - 1, len(padded)))

    def _probability(self, gram: str) -> float:
        """Return the probability of the last character after the others."""
        value = 1 / _CHARACTERS
        for start in range(ORDER - 1, -1, -1):
            context = gram[start:-1]
            if total := self._totals[context]:
                kinds = self._kinds[context]
                value = (self._grams[gram[start:]] + kinds * value) / (total + kinds)
        return value
