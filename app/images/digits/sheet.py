"""Location of the sheet on a photograph that shows the desk around it.

A sheet is convex, nearly all of one shade, and all along its edge lighter than what surrounds it, or all along darker,
as a blackboard is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from PIL import Image

from app.images.pixels import Bytes, Floats, Mask, extent, neighbours

_COARSE_SIDE: Final = 96  # a sheet is large
_LEVELS: Final = 9  # of grey that the sheet is looked for above and below
_LEAST_AREA: Final = 0.08  # of the image
_MOST_AREA: Final = 0.97
_SOLID: Final = 0.8  # least share of its convex hull that is of the sheet's shade: ink takes the rest
_SQUARE: Final = 0.84  # least share of the rectangle around it: a sheet has corners, a thick 0 has none
_LEAST_STEP: Final = 0.06  # at the edge, of the logarithm of light
_SECTORS: Final = 12  # that the edge is looked at in, around the middle
_DARK: Final = 12  # grey levels that are added before light is compared: a sensor's darkest carry no information
_SAME: Final = 0.8  # share of two hulls that both cover: they are of one sheet
_MOST_TRIED: Final = 3
_SQUARE_OF_3: Final = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class _Sheet:
    hull: Mask  # of the coarse image
    step: float  # at its edge, where that is least
    lighter: bool


def sheets(grey: Bytes) -> Iterator[Bytes]:
    """Yield the sheets that may lie on a grey image (H, W), likeliest first: each cut out upright.

    Pixels of a cut-out beyond the sheet get the shade of the sheet's edge in their row.
    """
    factor = max(1, math.ceil(max(grey.shape) / _COARSE_SIDE))
    coarse = np.asarray(Image.fromarray(grey).reduce(factor), np.float32)
    for sheet in _distinct(sorted(_candidates(coarse), key=lambda sheet: -sheet.step))[:_MOST_TRIED]:
        yield _cut(grey, coarse, sheet, factor)


def _distinct(sheets: list[_Sheet]) -> list[_Sheet]:
    """Return the sheets that do not nearly cover an earlier one."""
    kept: list[_Sheet] = []
    for sheet in sheets:
        shares = (np.count_nonzero(sheet.hull & e.hull) / np.count_nonzero(sheet.hull | e.hull) for e in kept)
        if all(share < _SAME for share in shares):
            kept.append(sheet)
    return kept


def _candidates(coarse: Floats) -> Iterator[_Sheet]:
    low, high = np.percentile(coarse, (2, 98))
    light = np.log(coarse + _DARK)
    for lighter in (True, False):
        # Without what is thin and dark on a lighter sheet, or light on a darker one: rules would split it.
        operation = cv2.MORPH_CLOSE if lighter else cv2.MORPH_OPEN
        plain = np.asarray(cv2.morphologyEx(coarse, operation, _SQUARE_OF_3), np.float32)
        for level in np.linspace(low, high, _LEVELS + 2)[1:-1]:
            hull = _hull_of_largest(plain > level if lighter else plain < level)
            if hull is not None:
                step = _least_step(light if lighter else -light, hull)
                if step > _LEAST_STEP:
                    yield _Sheet(hull, step, lighter)


def _hull_of_largest(mask: Mask) -> Mask | None:
    """Return the convex hull of the largest part of a mask, None if its size or shape is not that of a sheet."""
    core = cv2.erode(mask.view(np.uint8), _SQUARE_OF_3)  # without what merely touches it
    count, labels, stats, _ = cv2.connectedComponentsWithStats(core)
    if count < 2 or np.count_nonzero(core) < _LEAST_AREA * mask.size:
        return None
    largest = cv2.dilate((labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).view(np.uint8), _SQUARE_OF_3)
    corners = cv2.convexHull(cv2.findNonZero(largest))
    filled = np.zeros(mask.shape, np.uint8)
    cv2.fillConvexPoly(filled, corners, 1)
    hull, area = filled.view(bool), int(np.count_nonzero(filled))
    if not _LEAST_AREA <= area / mask.size <= _MOST_AREA or np.count_nonzero(largest) < _SOLID * area:
        return None
    width, height = cv2.minAreaRect(corners)[1]
    return hull if area > _SQUARE * (width + 1) * (height + 1) and _inner(hull).any() else None


def _least_step(light: Floats, hull: Mask) -> float:
    """Return how much brighter the hull's inner border is than its outer one, in the sector where that is least."""
    y, x = np.mgrid[: hull.shape[0], : hull.shape[1]]
    turns = np.arctan2(y - y[hull].mean(), x - x[hull].mean()) / math.tau + 0.5
    sectors = (turns * _SECTORS).astype(int) % _SECTORS
    grown, shrunk = neighbours(hull) > 0, neighbours(hull) == 9
    (inside, some), (outside, others) = (
        (np.bincount(sectors[ring], light[ring], _SECTORS), np.bincount(sectors[ring], minlength=_SECTORS))
        for ring in (shrunk & (neighbours(shrunk) < 9), (neighbours(grown) > 0) & ~grown)
    )
    there = (some > 0) & (others > 0)
    return float((inside[there] / some[there] - outside[there] / others[there]).min()) if there.any() else 0.0


def _inner(hull: Mask) -> Mask:
    """Return a hull without the two coarse pixels at its edge, which may be blurred."""
    inner: Mask = neighbours(neighbours(hull) == 9) == 9
    return inner


def _cut(grey: Bytes, coarse: Floats, sheet: _Sheet, factor: int) -> Bytes:
    """Return the sheet's box without the sheet's own edge."""
    inner = _inner(sheet.hull)
    top, bottom, left, right = extent(inner)
    inner = inner[top:bottom, left:right]
    clean = (cv2.dilate if sheet.lighter else cv2.erode)(coarse, _SQUARE_OF_3)
    clean = clean[top:bottom, left:right]
    firsts, lasts = inner.argmax(1), inner.shape[1] - 1 - inner[:, ::-1].argmax(1)
    nearest = np.arange(inner.shape[1]).clip(firsts[:, None], lasts[:, None])
    around = np.take_along_axis(clean, nearest, 1)
    cut = grey[top * factor : bottom * factor, left * factor : right * factor]
    size = (inner.shape[1] * factor, inner.shape[0] * factor)
    around, share = (
        np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))[: cut.shape[0], : cut.shape[1]]
        for values in (around, inner.astype(np.float32))
    )
    return np.where(share > 0.5, cut, np.rint(around)).astype(np.uint8)
