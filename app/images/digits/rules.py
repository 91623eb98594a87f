"""The rules of ruled and squared paper: found, and taken off the sheet where no stroke crosses them."""

from collections.abc import Iterator
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from app.images.pixels import Bytes, Floats, Mask

Rows: TypeAlias = npt.NDArray[np.intp]

_BLOCK: Final = 8  # columns that are averaged: along them a rule rises by less than its own width
_THICKEST: Final = 1 / 60  # of the image's longer side
_STEEPEST: Final = 0.07  # rows a column
_SLOPES: Final = 29  # that are tried
_LEAST_DEPTH: Final = 6.0  # grey levels
_LONG: Final = 0.6  # least share of the image's width that a rule is seen on, if there are several
_HIDDEN: Final = 0.4  # beside two such, a stroke may lie along the rest
_END: Final = 0.12  # of the image's width: where a rule is seen on both sides
_SPANNING: Final = 0.9  # if there is one
_BEND: Final = 2  # rows that a rule may be off the straight line

_FUZZ: Final = 0.2  # of a rule's depth: what is fainter is no part of it
_STROKE: Final = 0.3  # of the darkest at a rule's sides: what is no darker is no stroke
_PART: Final = 40  # columns that the sheet is of one lightness in


def without_rules(grey: Bytes) -> Bytes:
    """Return a grey image (H, W) without the rules that run across it or down; itself if there are none.

    A rule is thin, straight, nearly level or upright, and seen on most of the image: on 3/5 of its side if there are
    several, on nearly all if there is one, and to both ends. Where a stroke crosses it nothing is taken away.
    """
    low, middle, high = np.percentile(grey[::4, ::4], (1, 50, 99))
    dark = middle - low >= high - middle  # on light
    ink = grey if dark else 255 - grey
    level = _level_rules_off(ink)
    clean = _level_rules_off(level.T).T
    if clean is ink or np.shares_memory(clean, ink):
        return grey
    return clean if dark else 255 - clean


def _level_rules_off(grey: Bytes) -> Bytes:
    """Return a grey image without the dark rules from side to side; itself if there are none."""
    reach = max(2, round(_THICKEST * max(grey.shape) / 2))
    if min(grey.shape) < 8 * reach:
        return grey
    blocks = np.asarray(Image.fromarray(grey).convert("F").reduce((_BLOCK, 1)))
    away, depths = 2 * reach, np.zeros_like(blocks)  # how much darker than `away` rows above and below
    depths[away:-away] = np.minimum(blocks[: -2 * away], blocks[2 * away :]) - blocks[away:-away]
    noise = float(np.median(np.abs(np.diff(blocks, axis=0))))
    seen = depths > max(_LEAST_DEPTH, 3 * noise)
    if seen.any(0).mean() < _LONG:
        return grey
    rules = list(_rules(depths, seen, reach))
    if not rules:
        return grey
    clean = grey.astype(np.float32)
    for rows in rules:
        middles = (np.arange(len(rows)) + 0.5) * _BLOCK - 0.5
        columns = np.rint(np.interp(np.arange(grey.shape[1]), middles, rows)).astype(int)  # the row in each
        _take_off(clean, columns, reach)
    return np.rint(clean).astype(np.uint8)


def _rules(depths: Floats, seen: Mask, reach: int) -> Iterator[Rows]:
    """Yield the row of each rule in each block: (blocks,)."""
    height, width = seen.shape
    slopes = np.linspace(-_STEEPEST, _STEEPEST, _SLOPES) * _BLOCK
    shifts = np.rint(slopes[:, None] * (np.arange(width) - (width - 1) / 2)).astype(int)
    margin = int(np.abs(shifts).max()) + 1
    padded = np.pad(seen, ((margin, margin), (0, 0)))
    padded[1:-1] |= padded[:-2] | padded[2:]  # a row more or less
    rows, end = np.arange(height)[:, None], max(2, round(_END * width))
    lines = (padded[rows + margin + shift, np.arange(width)] for shift in shifts)  # (H, W) each
    # of each line the share that is seen; 0 if it ends within the image
    shares = np.stack([e.mean(-1, dtype=np.float32) * e[:, :end].any(-1) * e[:, -end:].any(-1) for e in lines])
    best = int((shares**4).sum(1).argmax())
    alike = slice(max(0, best - 2), best + 3)  # in perspective they are not quite parallel
    found = shares[alike].max(0)
    peaks = _peaks(found, 2 * reach)
    least = _HIDDEN if np.count_nonzero(found[peaks] >= _LONG) > 1 else _SPANNING
    for row in peaks[found[peaks] >= least].tolist():
        yield _traced(depths, row + shifts[alike][shares[alike, row].argmax()])


def _peaks(values: npt.NDArray[np.floating], apart: int) -> Rows:
    """Return the rows of the largest values, none of them near a larger one."""
    order = np.argsort(-values, kind="stable")
    free, peaks = np.ones(len(values), bool), []
    for row in order[values[order] >= _HIDDEN].tolist():
        if free[row]:
            peaks.append(row)
            free[max(0, row - apart) : row + apart + 1] = False
    return np.array(peaks, np.intp)


def _traced(depths: Floats, rows: Rows) -> Rows:
    """Return the rows of a straight line, moved and turned onto the deepest rows near most of it."""
    rows = rows.clip(_BEND, len(depths) - 1 - _BEND)
    offs = np.arange(-_BEND, _BEND + 1)[:, None]
    off = depths[rows + offs, np.arange(len(rows))].argmax(0) - _BEND
    usual = np.abs(off - np.median(off)) <= 1  # where no stroke is deeper
    line = np.polyfit(np.flatnonzero(usual), off[usual], 1) if np.count_nonzero(usual) > 1 else (0, np.median(off))
    traced: Rows = rows + np.rint(np.polyval(line, np.arange(len(rows)))).astype(int)
    return traced


def _take_off(grey: Floats, rows: Rows, reach: int) -> None:
    """Paint a rule over with the pixels above and below it, but not where a stroke crosses it."""
    rows_around = (rows + np.arange(-3 * reach, 3 * reach + 1)[:, None]).clip(0, len(grey) - 1)
    strip = grey[rows_around, np.arange(grey.shape[1])]
    profile = np.median(strip, axis=1)
    depths = profile[[0, 1, -2, -1]].mean() - profile
    depth = depths[3 * reach]
    clear = np.flatnonzero(depths < _FUZZ * depth)
    first, last = clear[clear < 3 * reach].max(initial=0), clear[clear > 3 * reach].min(initial=len(strip))
    if first < 2 or last > len(strip) - 3 or last - first > 2 * reach + 2:
        return  # too thick for a rule
    above, below = strip[first - 2 : first].mean(0), strip[last + 1 : last + 3].mean(0)
    ground = _ground(np.maximum(above, below))
    least = max(depth / 2, _STROKE * float((ground - np.minimum(above, below)).max()))
    inked_above, inked_below = (ground - side > least for side in (above, below))
    near = np.ones(2 * (last - first) + 1)  # a stroke may cross at a slant
    near_above, near_below = (np.convolve(inked, near, "same") > 0.5 for inked in (inked_above, inked_below))
    kept = inked_above & near_below | inked_below & near_above
    paint = np.where(inked_above, below, np.where(inked_below, above, (above + below) / 2))
    painted = np.arange(first, last + 1)
    off = painted[:, None] - 3 * reach
    kept = kept | inked_above & (off < 0) | inked_below & (off > 0)  # a stroke along it loses no more than half of it
    grey[rows_around[painted], np.arange(grey.shape[1])] = np.where(kept, strip[painted], paint)


def _ground(values: Floats) -> Floats:
    """The lightness of the sheet along a rule, (W,), from the upper half of what is seen in each part of it."""
    count = max(1, len(values) // _PART)
    parts = np.array_split(values, count)
    middles = np.cumsum([len(part) for part in parts]) - np.array([len(part) for part in parts]) / 2
    light = [float(np.percentile(part, 75)) for part in parts]
    ground: Floats = np.interp(np.arange(len(values)), middles, light).astype(np.float32)
    return ground
