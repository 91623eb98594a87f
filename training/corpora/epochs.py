"""Epochs: how often each source is read, and all documents shuffled into one stream, read from the maps."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from training.corpora.documents import TEMPLATED, Documents, PieceIds
from training.corpora.files import release

Numbers: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]

_BLOCK: Final = 1 << 10  # documents whose pieces are counted together
_READ: Final = 1 << 20  # documents whose starts are in memory


def repeats(sources: Mapping[str, Documents], power: float, most: float) -> dict[str, float]:
    """Return how often an epoch repeats each source: in proportion to words^(power - 1), 1 on average over all pieces.

    At most `most` times, and once at most where it is TEMPLATED.
    """
    bounds = {name: 1.0 if name in TEMPLATED else most for name in sources}
    raw = {name: max(part.words, 1) ** (power - 1) for name, part in sources.items()}
    sizes = {name: len(part.ids) for name, part in sources.items()}
    total = sum(sizes.values())

    def bounded(factor: float) -> dict[str, float]:
        return {name: min(factor * raw[name], bounds[name]) for name in sources}

    low, high = 0.0, most / min(raw.values())
    for _ in range(100):
        middle = (low + high) / 2
        repeated = sum(sizes[name] * count for name, count in bounded(middle).items())
        low, high = (middle, high) if repeated < total else (low, middle)
    return bounded(high)


class Epoch:
    """All documents of an epoch, shuffled: a stream of pieces that stays on disk; the order is in memory.

    Source s is read counts[s] times: a fraction is that share of its documents. The draws depend on `seed` and `epoch`
    alone.
    """

    def __init__(self, sources: Mapping[str, Documents], counts: Mapping[str, float], seed: int, epoch: int) -> None:
        names = sorted(sources)
        self._sources = [sources[name] for name in names]
        self._ids = [np.asarray(part.ids) for part in self._sources]  # plain views cost less to slice
        self._starts = [np.asarray(part.starts) for part in self._sources]
        sizes = [len(starts) - 1 for starts in self._starts]
        self._first = np.cumsum([0, *sizes]).tolist()  # the number of each source's first document
        kind = np.min_scalar_type(self._first[-1])
        chosen: list[Numbers] = [np.empty(0, kind)]
        for at, (name, size) in enumerate(zip(names, sizes, strict=True)):
            documents = np.arange(self._first[at], self._first[at + 1], dtype=kind)
            whole, rest = divmod(counts[name], 1.0)
            chosen += [documents] * int(whole)
            if share := round(rest * size):
                drawn = documents.copy()
                np.random.default_rng([seed, epoch, at]).shuffle(drawn)
                chosen.append(drawn[:share])
        self._order = np.concatenate(chosen)
        np.random.default_rng([seed, epoch]).shuffle(self._order)
        lengths = self._lengths()
        blocks = range(0, len(self._order), _BLOCK)
        totals = [lengths[self._order[start : start + _BLOCK]].sum(dtype=np.int64) for start in blocks]
        self._ends = np.cumsum([0, *totals])  # pieces before each block, and of all

    def __len__(self) -> int:
        """Return the number of pieces."""
        return int(self._ends[-1])

    def windows(self, positions: Sequence[int], size: int) -> Iterator[PieceIds]:
        """Yield the windows (streams, size + 1) of the streams from these positions on, until one is over.

        The last piece of a window is the first of the next.
        """
        streams = [windows(self._stream(position), size) for position in positions]
        for rows in zip(*streams, strict=False):
            pieces = np.stack(rows)
            for part in self._sources:
                release(part.ids)
                release(part.starts)
            yield pieces

    def _stream(self, position: int) -> Iterator[PieceIds]:
        """Yield the rest of the document at a position, and all further documents."""
        block = int(np.searchsorted(self._ends, position, "right")) - 1
        skipped = position - int(self._ends[block])
        for start in range(block * _BLOCK, len(self._order), _BLOCK):
            for document in self._order[start : start + _BLOCK].tolist():
                source = bisect_right(self._first, document) - 1
                at, starts = document - self._first[source], self._starts[source]
                ids = self._ids[source][starts[at] : starts[at + 1]]
                if skipped < len(ids):
                    yield ids[skipped:]
                skipped = max(skipped - len(ids), 0)

    def _lengths(self) -> Numbers:
        """Return the number of pieces of every document: (documents,)."""
        lengths = np.empty(self._first[-1], np.min_scalar_type(max(int(starts[-1]) for starts in self._starts)))
        for source, first in zip(self._sources, self._first, strict=False):
            for at in range(0, len(source.starts) - 1, _READ):
                found = np.diff(source.starts[at : at + _READ + 1])
                lengths[first + at : first + at + len(found)] = found
                release(source.starts)
        return lengths


def windows(texts: Iterable[PieceIds], size: int) -> Iterator[PieceIds]:
    """Yield windows (size + 1,) of texts one after another, all in the same array.

    The last piece of a window is the first of the next.
    """
    window, filled = np.empty(size + 1, np.uint16), 0
    for text in texts:
        at = 0
        while at < len(text):
            part = text[at : at + size + 1 - filled]
            window[filled : filled + len(part)] = part
            at, filled = at + len(part), filled + len(part)
            if filled > size:
                yield window
                window[0], filled = window[size], 1
