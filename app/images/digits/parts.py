"""Choice of the connected parts of the ink that make up the digit, without frames, underlines and specks."""

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from app.images.pixels import Floats, Mask

Numbers: TypeAlias = npt.NDArray[np.intp]
Labels: TypeAlias = npt.NDArray[Any]  # (H, W) int32, as of OpenCV

SEVERAL: Final = "several digits: expected one, or number=true for a number"

_MOST: Final = 96  # parts that are considered: those of most ink
_DARK: Final = 0.7  # of the darkest part: a part with less is no ink
_SMALL: Final = 0.06  # of the main part's ink: a part with less is a speck
_NEAR: Final = 0.3  # of the longer of two parts: closer ones belong together
_ALIKE: Final = 0.25  # of the main part's ink:
_DOTS: Final = 4  # such parts are dots or dashes,
_DOTS_APART: Final = 1.3  # which are this far apart at most, of the longer one
_FRAMES: Final = 4  # parts that are tried: the largest boxes
_INSIDE: Final = 0.3  # of a frame: the least extent of what it frames
_CONVEX: Final = 0.93  # of its hull: a frame's area
_TALL: Final = 0.55  # of the whole: digits of a number are at least so high,
_APART: Final = 0.4  # and their middles so far apart
_MOST_CLOSED: Final = 0.3  # of the whole: gaps between dots or dashes are no wider


@dataclass(frozen=True)
class Digit:
    """The parts that make up the digit."""

    ink: Floats  # (H, W), its gaps closed
    strokes: Mask  # (H, W)
    others: Mask | None  # (H, W) of parts that were left out
    share: float  # of all the ink
    several: bool  # True if there are further digits


class _Parts:
    """Numbers, boxes and ink of parts, each (N,)."""

    def __init__(self, numbers: Numbers, boxes: Numbers, weights: npt.NDArray[np.float64]) -> None:
        """`numbers`: labels; `boxes`: left, top, width and height of each, (N, 4); `weights`: sums of ink."""
        self.numbers, self.boxes, self.weights = numbers, boxes, weights
        self.left, self.top, self.width, self.height = boxes.T
        self.right, self.bottom = self.left + self.width, self.top + self.height
        self.longer: Numbers = np.maximum(self.width, self.height)

    def __getitem__(self, chosen: Mask) -> "_Parts":
        return _Parts(self.numbers[chosen], self.boxes[chosen], self.weights[chosen])

    def gaps(self) -> tuple[Numbers, Numbers]:
        """Distances across and down of all pairs of boxes, each (N, N); negative where they overlap."""
        across = np.maximum(self.left[:, None] - self.right, self.left - self.right[:, None])
        down = np.maximum(self.top[:, None] - self.bottom, self.top - self.bottom[:, None])
        return across, down


def digit_parts(ink: Floats, level: float) -> Digit:
    """Choose the parts of the ink above `level` that make up one digit."""
    mask = ink > level
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
    if count < 3:
        return Digit(ink, mask, None, 1.0, several=False)
    weights = np.bincount(labels.ravel(), ink.ravel(), count)[1:]
    order = np.argsort(-weights)[:_MOST]
    parts = _Parts(order + 1, stats[1:][order, :4].astype(np.intp), weights[order].astype(np.float64))
    height, width = ink.shape
    spanning = (parts.width == width) | (parts.height == height)
    touching = (parts.left == 0) | (parts.top == 0) | (parts.right == width) | (parts.bottom == height)
    penalties = np.where(spanning, 0.02, np.where(touching, 0.25, 1)) * np.where(parts.width > 4 * parts.height, 0.3, 1)
    peaks = np.array([_peak(ink, labels, *each) for each in zip(parts.numbers, parts.boxes, strict=True)])
    dark = peaks > _DARK * (peaks if spanning.all() else peaks[~spanning]).max()
    parts, penalties = parts[dark], penalties[dark]

    usable = np.ones(len(parts.numbers), bool)
    while (framed := _framed(parts, usable, labels)) is not None:
        usable = framed
    scores = parts.weights * usable * penalties
    main = int(scores.argmax())
    relevant, alike = scores >= _SMALL * scores[main], scores >= _ALIKE * scores[main]
    dotted = np.count_nonzero(alike) >= _DOTS
    chosen = _cluster(parts, main, relevant, alike & dotted)
    several = not dotted and _several(parts, chosen, relevant)
    if not dotted:
        flat = (parts.width >= 3 * parts.height) & (parts.height <= 0.2 * parts.height[main])
        chosen &= ~(flat & (parts.top >= parts.bottom[main] - 1))  # underlines
    table = np.zeros(count, bool)
    table[parts.numbers[chosen]] = True
    strokes = table[labels]
    share, others = float(parts.weights[chosen].sum() / parts.weights.sum()), mask & ~strokes
    if dotted:
        ink = _closed(ink, strokes)
        strokes |= ink > level
        strokes &= ~others
    return Digit(ink, strokes, others, share, several)


def _peak(ink: Floats, labels: Labels, number: int, box: Numbers) -> float:
    left, top, width, height = box.tolist()
    cut = slice(top, top + height), slice(left, left + width)
    return float(ink[cut][labels[cut] == number].max())


def _framed(parts: _Parts, usable: Mask, labels: Labels) -> Mask | None:
    """Return which usable parts are inside the outermost frame, a part with a hole around others; None without one."""
    candidates = np.flatnonzero(usable)
    for outer in candidates[np.argsort(-(parts.width * parts.height)[usable])][:_FRAMES].tolist():
        inside: Mask = usable & (parts.left > parts.left[outer]) & (parts.right < parts.right[outer])
        inside &= (parts.top > parts.top[outer]) & (parts.bottom < parts.bottom[outer])
        if inside.any() and parts.longer[inside].max() >= _INSIDE * parts.longer[outer]:
            inner = int(np.flatnonzero(inside)[parts.weights[inside].argmax()])
            if _encloses(parts, outer, inner, labels):
                return inside
    return None


def _encloses(parts: _Parts, outer: int, inner: int, labels: Labels) -> bool:
    """Return whether the outer part is convex and a hole of it, but for a small gap, holds the middle of the inner one.

    The outline of a digit is not convex.
    """
    left, top, width, height = parts.boxes[outer].tolist()
    side = 1 + max(width, height) // 20
    shape = (labels[top : top + height, left : left + width] == parts.numbers[outer]).astype(np.uint8)
    shape = np.asarray(cv2.copyMakeBorder(shape, side, side, side, side, cv2.BORDER_CONSTANT))
    shape = np.asarray(cv2.dilate(shape, np.ones((side, side), np.uint8)))
    contours, tree = cv2.findContours(shape, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    x, y, wide, high = parts.boxes[inner].tolist()
    middle = (x + wide / 2 - left + side, y + high / 2 - top + side)
    outline = max(contours, key=cv2.contourArea)
    if cv2.contourArea(outline) < _CONVEX * cv2.contourArea(cv2.convexHull(outline)):
        return False
    holes = [contour for contour, (*_, around) in zip(contours, tree[0], strict=True) if around >= 0]
    return any(cv2.pointPolygonTest(hole, middle, False) > 0 for hole in holes)


def _cluster(parts: _Parts, main: int, relevant: Mask, dots: Mask) -> Mask:
    """Return the parts that are near the main one, or near one that is; dots may be further apart."""
    longer = np.maximum(parts.longer[:, None], parts.longer)
    reach = np.where(dots[:, None] & dots, _DOTS_APART * longer, _NEAR * longer + 1)
    linked = (np.maximum(*parts.gaps()) <= reach) & relevant[:, None] & relevant
    chosen = np.zeros(len(relevant), bool)
    chosen[main] = True
    while not np.array_equal(grown := linked[chosen].any(0) | chosen, chosen):
        chosen = grown
    return chosen


def _several(parts: _Parts, chosen: Mask, relevant: Mask) -> bool:
    """Return whether two parts side by side are as high as digits of one number."""
    height = int(parts.bottom[chosen].max() - parts.top[chosen].min())
    tall = parts[relevant & (parts.height >= _TALL * height)]
    across, down = tall.gaps()
    middles = tall.left + tall.width / 2
    apart = np.abs(middles[:, None] - middles) >= _APART * height
    separate = across >= -0.25 * np.minimum(tall.width[:, None], tall.width)
    return bool((apart & separate & (down <= -0.5 * _TALL * height)).any())


def _closed(ink: Floats, strokes: Mask) -> Floats:
    """Return the ink of the strokes, its gaps closed until it is one part."""
    rows, columns = np.flatnonzero(strokes.any(1)), np.flatnonzero(strokes.any(0))
    y, x = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cut = np.where(strokes[y, x], ink[y, x], 0).astype(np.float32)
    longer, peak = max(cut.shape), float(cut.max())
    closed = cut
    for side in range(3, max(round(_MOST_CLOSED * longer), 4), max(2, 2 * (longer // 60))):
        padded = cv2.copyMakeBorder(cut, side, side, side, side, cv2.BORDER_CONSTANT)
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        closed = np.asarray(cv2.morphologyEx(padded, cv2.MORPH_CLOSE, kernel), np.float32)[side:-side, side:-side]
        if cv2.connectedComponents((closed > peak / 2).view(np.uint8))[0] == 2:
            break
    whole = ink.copy()
    whole[y, x] = np.maximum(ink[y, x], closed)
    return whole
