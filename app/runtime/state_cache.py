"""A cache of recurrent states: continuing a known prefix costs one step a token."""

from array import array
from bisect import bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

OVERHEAD = 300  # bytes of bookkeeping per entry, about


class StateCache:
    """A bounded LRU cache of recurrent states: a prefix of token ids -> the state (S,) after it.

    Belongs to one model version. Not thread-safe: used in its scheduling steps, one at a time.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity` in bytes; 0 disables the cache."""
        self.capacity = capacity
        self.bytes = 0
        self._states: OrderedDict[bytes, npt.NDArray[np.float32]] = OrderedDict()
        self._lengths: Counter[int] = Counter()  # number of keys by length
        self._known_lengths: list[int] = []  # ascending: only prefixes of these lengths are looked up

    def __len__(self) -> int:
        return len(self._states)

    def longest(self, tokens: Sequence[int]) -> tuple[int, npt.NDArray[np.float32] | None]:
        """Return the length of the longest cached prefix of `tokens` and its state; (0, None) if there is none."""
        key = _key(tokens)
        for index in range(bisect_right(self._known_lengths, len(key)) - 1, -1, -1):
            prefix = key[: self._known_lengths[index]]
            if (state := self._states.get(prefix)) is not None:
                self._states.move_to_end(prefix)
                return len(prefix) // _ITEM, state
        return 0, None

    def put(self, tokens: Sequence[int], state: npt.NDArray[np.float32]) -> None:
        """Store the state after `tokens`; evict the least recently used entries over the capacity."""
        key = _key(tokens)
        if key in self._states or self._cost(key, state) > self.capacity:
            return
        self._states[key] = state.copy()  # a view would keep its whole batch in memory
        self._lengths[len(key)] += 1
        if self._lengths[len(key)] == 1:
            insort(self._known_lengths, len(key))
        self.bytes += self._cost(key, state)
        while self.bytes > self.capacity:
            self._evict()

    def _evict(self) -> None:
        key, state = self._states.popitem(last=False)
        self.bytes -= self._cost(key, state)
        self._lengths[len(key)] -= 1
        if not self._lengths[len(key)]:
            self._known_lengths.remove(len(key))

    @staticmethod
    def _cost(key: bytes, state: npt.NDArray[np.float32]) -> int:
        return len(key) + state.nbytes + OVERHEAD


_ITEM = array("i").itemsize


def _key(tokens: Sequence[int]) -> bytes:
    return array("i", tokens).tobytes()
