"""Arrays of pixels: types, connected components, local extremes."""

import io
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]


def png(pixels: Bytes) -> bytes:
    """A PNG file of (H, W) grey or (H, W, 3) RGB."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def outermost(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The outermost pixels of (H, W, ...)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def extent(mask: Mask) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of the true pixels, ends excluded."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def middle(values: Floats) -> float:
    """Return the upper median, of a sample of rows if there are many."""
    some = values[:: 1 + values.size // 2**15]
    return float(np.partition(some, some.size // 2, axis=None)[some.size // 2])


def near(mask: Mask) -> Bytes:
    """Return for each pixel how many of the nine in and around it are true."""
    padded = surrounded(mask.view(np.uint8), 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    counts: Bytes = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return counts


def surrounded(values: npt.NDArray[Any], by: int) -> npt.NDArray[Any]:
    """Return (H, W) padded with `by` zeros on each side; faster than `np.pad` for small arrays."""
    padded = np.zeros((values.shape[0] + 2 * by, values.shape[1] + 2 * by), values.dtype)
    padded[by:-by, by:-by] = values
    return padded


def extremes(grey: Floats, reach: int, extreme: Callable[[Floats, Floats], Floats]) -> Floats:
    """The extreme over each square of 2 * `reach` + 1 pixels within (H, W): (H - 2 * reach, W - 2 * reach)."""
    for _ in range(2):
        width = 1
        while width <= 2 * reach:
            shift = min(width, 2 * reach + 1 - width)
            grey = extreme(grey[:-shift], grey[shift:])
            width += shift
        grey = grey.T
    return grey


def boxes(mask: Mask, labels: npt.NDArray[np.intp], count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the first and the last row and column of each component: two of (2, count)."""
    lows = np.full((2, count), max(mask.shape))
    highs = np.zeros((2, count), np.intp)
    for low, high, positions in zip(lows, highs, np.nonzero(mask), strict=True):
        np.minimum.at(low, labels, positions)
        np.maximum.at(high, labels, positions)
    return lows, highs


def parts(mask: Mask) -> tuple[npt.NDArray[np.intp], int]:
    """Return the connected components (8-connectivity): labels (H, W), undefined outside of `mask`, and their count.

    Runs of a row are joined with those they touch in the next row, all at once: each takes the lowest label among its
    neighbours until none changes.
    """
    padded = np.zeros((mask.shape[0], mask.shape[1] + 1), np.int8)
    padded[:, 1:] = mask
    runs = (np.diff(padded, axis=1) == 1).cumsum().reshape(mask.shape) - 1
    upper, lower = (np.concatenate(ends) for ends in zip(*_touching(mask, runs), strict=True))
    lowest = np.arange(int(runs[-1, -1]) + 1)
    while True:
        both = np.minimum(lowest[upper], lowest[lower])
        joined = lowest.copy()
        np.minimum.at(joined, lowest[upper], both)
        np.minimum.at(joined, lowest[lower], both)
        joined = joined[joined]
        if (joined == lowest).all():
            break
        lowest = joined
    kept, numbers = np.unique(lowest, return_inverse=True)
    return numbers[np.where(mask, runs, 0)], len(kept)


def _touching(mask: Mask, runs: npt.NDArray[np.intp]) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """The runs above and below wherever two touch: straight down, and to both sides."""
    width = mask.shape[1]
    for shift in (-1, 0, 1):
        above, below = (slice(max(0, s), width + min(0, s)) for s in (shift, -shift))
        both = mask[:-1, above] & mask[1:, below]
        yield runs[:-1, above][both], runs[1:, below][both]
