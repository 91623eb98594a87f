"""Recurrent states of prefixes already read: whoever types on pays for one step."""

from array import array
from bisect import bisect_right, insort
from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

OVERHEAD = 300  # bytes of bookkeeping an entry, about


class StateCache:
    """Least-recently-used map from a prefix of token ids to the state (S,) after it, bounded in bytes.

    One cache belongs to one model version, whose turns it is used in, one at a time.
    """

    def __init__(self, capacity: int) -> None:
        """`capacity` in bytes; 0 keeps nothing."""
        self.capacity = capacity
        self.bytes = 0
        self._states: OrderedDict[bytes, npt.NDArray[np.float32]] = OrderedDict()
        self._lengths: Counter[int] = Counter()  # how many keys are so long
        self._known_lengths: list[int] = []  # the same, ascending: only these prefixes are looked for

    def __len__(self) -> int:
        return len(self._states)

    def longest(self, tokens: Sequence[int]) -> tuple[int, npt.NDArray[np.float32] | None]:
        """How many leading tokens of `tokens` the cache knows a state for, and that state."""
        key = _key(tokens)
        for place in range(bisect_right(self._known_lengths, len(key)) - 1, -1, -1):
            prefix = key[: self._known_lengths[place]]
            if (state := self._states.get(prefix)) is not None:
                self._states.move_to_end(prefix)
                return len(prefix) // _ITEM, state
        return 0, None

    def put(self, tokens: Sequence[int], state: npt.NDArray[np.float32]) -> None:
        """Remember `state` as the one after `tokens`; drop the least recently used ones over the capacity."""
        key = _key(tokens)
        if key in self._states or self._cost(key, state) > self.capacity:
            return
        self._states[key] = state.copy()  # a row of a batch would keep its whole batch in memory
        self._lengths[len(key)] += 1
        if self._lengths[len(key)] == 1:
            insort(self._known_lengths, len(key))
        self.bytes += self._cost(key, state)
        while self.bytes > self.capacity:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
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
