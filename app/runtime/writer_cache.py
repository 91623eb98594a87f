"""A cache model of a writer's own words: a word written before is likelier to come again.

Kuhn & De Mori 1990 (A cache-based natural language model for speech recognition), with the contexts of Jelinek et al.
1991 (A dynamic language model for speech recognition): the shares of a word among all words so far, among those after
the same token and among those after the same two are interpolated with the network's probability. A word is a token
and those that go on in it; a sign is one too.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from app.errors import BundleError
from app.runtime.recurrent_engine import Floats
from app.text import Flags, Ids, Tokenizer

Doubles: TypeAlias = npt.NDArray[np.float64]

CONTEXTS: Final = 64  # whose shares are kept: those of one step of a search; a long history's take 300 kB each
OVERHEAD: Final = 300  # bytes of bookkeeping per entry, about


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of the interpolation; the defaults were fitted to validation texts by `tests.bench.adaptation`.

    The words after a context of n words get the share weight * n / (n + doubt) of the probability.
    """

    unigram: float = 0.089
    unigram_doubt: float = 60.0
    bigram: float = 0.159
    bigram_doubt: float = 2.0
    trigram: float = 0.248
    trigram_doubt: float = 0.64

    @classmethod
    def of(cls, calibration: Mapping[str, float], folder: object) -> Self | None:
        """Return a manifest's weights, None if it has none. Raise BundleError that names `folder` for invalid ones."""
        if not calibration:
            return None
        names = {field.name for field in fields(cls)}
        if calibration.keys() != names or not all(0 <= value <= _most(name) for name, value in calibration.items()):
            raise BundleError(f"{folder}: calibration: expected {', '.join(sorted(names))}, found {dict(calibration)}")
        return cls(**calibration)


def _most(name: str) -> float:
    """Return the largest valid weight or doubt; with a weight of 1 the network would count no more."""
    return 1000 if name.endswith("_doubt") else 0.99


class WriterCache:
    """The words that a writer has written so far."""

    def __init__(self, tokenizer: Tokenizer, history: Ids, context: Sequence[int], weights: Weights) -> None:
        """`history`: (H,) tokens of earlier texts, oldest first; `context`: those of the present one."""
        self._before = [-1, -1, *history[-2:].tolist()]  # -1 comes after no token
        self._tokens = np.concatenate([history, np.array(context, np.int64)])
        begins = tokenizer.begins(self._tokens)
        self._starts = np.flatnonzero(begins)
        earlier = np.concatenate([[-1, -1], self._tokens])
        self._last, self._before_last = earlier[self._starts + 1], earlier[self._starts]  # (W,) before each word
        self._inside = np.append(~begins, False)
        self._size = len(tokenizer.strings)
        self._weights = weights
        self._known: dict[tuple[int, int], WordShares] = {}

    @property
    def words(self) -> int:
        """The number of words."""
        return len(self._starts)

    def after(self, context: Sequence[int]) -> "WordShares":
        """Return the words' shares of the probability after `context`, that of the cache and what has come since."""
        before, last = [*self._before, *context[-2:]][-2:]
        if (before, last) not in self._known:
            if len(self._known) == CONTEXTS:
                self._known.clear()
            self._known[before, last] = self._shares(before, last)
        return self._known[before, last]

    def _shares(self, before: int, last: int) -> "WordShares":
        weights, starts = self._weights, self._starts
        after_last = self._last == last
        after_both = after_last & (self._before_last == before)
        found, both = int(after_last.sum()), int(after_both.sum())
        trigram = _share(weights.trigram, both, weights.trigram_doubt)
        bigram = (1 - trigram) * _share(weights.bigram, found, weights.bigram_doubt)
        unigram = (1 - trigram - bigram) * _share(weights.unigram, len(starts), weights.unigram_doubt)
        shares = np.full(len(starts), unigram / max(1, len(starts)))
        shares[after_last] += bigram / max(1, found)
        shares[after_both] += trigram / max(1, both)
        return WordShares(self._tokens, self._inside, starts, shares, self._size)


def _share(weight: float, count: int, doubt: float) -> float:
    return weight * count / (count + doubt) if count else 0.0


class _Words(NamedTuple):
    """Occurrences of the words that begin with the same tokens."""

    starts: Ids  # (W,) of those that go on after these tokens
    shares: Doubles  # (W,)
    longer: float = 0.0  # sum of `shares`
    whole: float = 0.0  # share of the words that are these tokens


_NO_WORDS: Final = _Words(np.empty(0, np.int64), np.empty(0))


class WordShares:
    """The shares of the probability of the next word that its earlier occurrences have."""

    def __init__(self, tokens: Ids, inside: Flags, starts: Ids, shares: Doubles, vocabulary_size: int) -> None:
        """`tokens`: (N,); `inside`: (N + 1,) the token goes on in a word; `starts`, `shares`: of each word (W,)."""
        self._tokens = tokens
        self._inside = inside
        self._size = vocabulary_size
        written = float(shares.sum())
        self._words: dict[tuple[int, ...], _Words] = {(): _Words(starts, shares, written)}  # by first tokens
        self._network = 1 - written

    def joint(self, word: tuple[int, ...], ids: Ids, log_probabilities: Floats) -> Floats:
        """Return the log-probabilities (M,) of words that begin with `word` and each of the tokens `ids` (M,).

        `log_probabilities`: the network's (M,), of all these tokens together.
        """
        joint: Floats = log_probabilities + np.float32(math.log(self._network))
        words = self._beginning(word)
        if words.longer:
            masses = np.bincount(self._tokens[words.starts + len(word)], words.shares, self._size)[ids]
            known = np.flatnonzero(masses)
            joint[known] = np.log(self._network * np.exp(log_probabilities[known]) + masses[known])
        return joint

    def whole(self, word: tuple[int, ...], log_probability: float) -> float:
        """Return the log-probability of a whole word, given the network's."""
        return math.log(self._network * math.exp(log_probability) + self._beginning(word).whole)

    def longer(self, word: tuple[int, ...], log_probability: float) -> float:
        """Return the log-probability of all words that begin with `word` and go on, given the network's."""
        return math.log(self._network * math.exp(log_probability) + self._beginning(word).longer)

    def _beginning(self, word: tuple[int, ...]) -> _Words:
        """Return the words that are `word` or begin with it."""
        if word not in self._words:
            starts, shares, *_ = self._beginning(word[:-1])
            same = np.flatnonzero(self._tokens[starts + len(word) - 1] == word[-1]) if len(starts) else starts
            self._words[word] = self._found(starts[same], shares[same], len(word)) if len(same) else _NO_WORDS
        return self._words[word]

    def _found(self, starts: Ids, shares: Doubles, length: int) -> _Words:
        """Part words that begin with the same `length` tokens into those that go on and the others."""
        goes_on = self._inside[starts + length]
        longer = shares[goes_on]
        return _Words(starts[goes_on], longer, float(longer.sum()), float(shares[~goes_on].sum()))


class Histories:
    """A bounded LRU cache of writers' earlier texts as token ids. Thread-safe."""

    def __init__(self, capacity: int, encode: Callable[[str], Sequence[int]]) -> None:
        """`capacity` in bytes; `encode` returns a text's tokens."""
        self._capacity = capacity
        self._encode = encode
        self._bytes = 0
        self._entries: OrderedDict[tuple[str, ...], Ids] = OrderedDict()
        self._lock = threading.Lock()

    def tokens(self, texts: Sequence[str]) -> Ids:
        """Return the tokens of the texts, one after the other."""
        key = tuple(texts)
        with self._lock:
            if (known := self._entries.get(key)) is not None:
                self._entries.move_to_end(key)
                return known
        tokens = np.array([token for text in texts for token in self._encode(text)], np.int64)
        with self._lock:
            if key not in self._entries:
                self._entries[key] = tokens
                self._bytes += _cost(key, tokens)
            while self._bytes > self._capacity:
                self._bytes -= _cost(*self._entries.popitem(last=False))
        return tokens


def _cost(texts: Sequence[str], tokens: Ids) -> int:
    return OVERHEAD + sum(4 * len(text) for text in texts) + tokens.nbytes
