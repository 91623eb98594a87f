"""A cache of recurrent states: continuing a known prefix costs one step a token."""

import math
from array import array
from bisect import bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from app.runtime.recurrent_engine import Floats
from app.text import Ids

OVERHEAD = 300  # bytes of bookkeeping per entry, about


class Entry(NamedTuple):
    """The state (S,) after a prefix, and the log-probabilities (M,) of the tokens `ids` that were last read there."""

    state: Floats
    ids: Ids | None = None
    log_probabilities: Floats | None = None
    together: float = math.nan  # probability that one of `ids` follows, of those that go on in a word

    def log_probabilities_of(self, ids: Ids | None) -> Floats | None:
        """Return the log-probabilities of the very array `ids`, None if another's or none were read."""
        return self.log_probabilities if ids is self.ids else None


class StateCache:
    """A bounded LRU cache of recurrent states: a prefix of token ids -> the state (S,) after it.

    Belongs to one model version. Not thread-safe: used in its scheduling steps, one at a time.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity` in bytes; 0 disables the cache."""
        self.capacity = capacity
        self.bytes = 0
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self._lengths: Counter[int] = Counter()  # number of keys by length
        self._known_lengths: list[int] = []  # ascending: only prefixes of these lengths are looked up

    def __len__(self) -> int:
        return len(self._entries)

    def longest(self, tokens: Sequence[int]) -> tuple[int, Entry | None]:
        """Return the length of the longest cached prefix of `tokens` and its entry; (0, None) if there is none."""
        key = _key(tokens)
        for index in range(bisect_right(self._known_lengths, len(key)) - 1, -1, -1):
            prefix = key[: self._known_lengths[index]]
            if (entry := self._entries.get(prefix)) is not None:
                self._entries.move_to_end(prefix)
                return len(prefix) // _ITEM, entry
        return 0, None

    def get(self, tokens: Sequence[int]) -> Entry | None:
        """Return the entry of exactly these tokens."""
        key = _key(tokens)
        if (entry := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, tokens: Sequence[int], entry: Entry) -> None:
        """Store what is known after `tokens`; evict the least recently used entries over the capacity."""
        key = _key(tokens)
        known = self._entries.get(key)
        if known and (entry.ids is None or entry.ids is known.ids):
            return
        if _cost(key, entry) > self.capacity:
            return
        if known:
            self._remove(key)
        self._entries[key] = entry
        self._lengths[len(key)] += 1
        if self._lengths[len(key)] == 1:
            insort(self._known_lengths, len(key))
        self.bytes += _cost(key, entry)
        while self.bytes > self.capacity:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: bytes) -> None:
        self.bytes -= _cost(key, self._entries.pop(key))
        self._lengths[len(key)] -= 1
        if not self._lengths[len(key)]:
            self._known_lengths.remove(len(key))


def _cost(key: bytes, entry: Entry) -> int:
    values = entry.log_probabilities  # the ids are the tokenizer's
    return len(key) + OVERHEAD + entry.state.nbytes + (0 if values is None else values.nbytes)


_ITEM = array("i").itemsize


def _key(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()
