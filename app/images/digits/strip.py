"""The strip of a handwritten number: its row of ink, 20 pixels high, on 28 rows of ground."""

import math
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from PIL import Image

from app.images.digits.framing import BOX, SIDE, grey_levels, is_photograph, shrunk
from app.images.digits.ground import contrast, strongest
from app.images.digits.rules import without_rules
from app.images.pixels import Bytes, Floats, Mask, extent

MARGIN: Final = (SIDE - BOX) // 2  # pixels of ground around the ink
MAX_WIDTH: Final = 640  # of a strip: twelve digits need about 240, in boxes of a form twice as much

_LONGEST = 1536  # pixels of a side: a larger image is shrunk
_LEAST_CONTRAST = 8  # grey levels
_STROKE = 0.4  # of the strongest ink: what is part of a stroke
_SMALL = 0.02  # of the largest part's ink: a part with less is a speck
_BESIDE = 0.3  # of the lower of two parts: those beside each other overlap so far,
_APART = 3  # and are this far apart at most, of the largest part's height
_ABOVE = 0.25  # of the largest part's height: parts above each other are this far apart at most
_MOST = 256  # parts that are considered: those of most ink
_FRAMED = 0.3  # of its ink: a part that has more ink within its box is a frame
_LONG = 2  # of its height: a longer row is levelled,
_STEEP = 0.25  # unless it falls more than that


@dataclass(frozen=True)
class Strip:
    """A number's row of ink, light on black, and where it is in the image; without a row, the reason why."""

    pixels: Bytes  # (28, W), W even
    left: float = 0.0  # of the strip, in pixels of the image
    top: float = 0.0  # where a level row through its left end is
    scale: float = 1.0  # pixels of the image a pixel of the strip
    slope: float = 0.0  # of the row in the image, downwards
    reason: str | None = None

    def box(self, start: int, end: int) -> list[int]:
        """Return left, top, width and height in the image of the ink in columns `start` to `end`, end excluded."""
        rows, columns = np.nonzero(self.pixels[:, start:end] > 255 * _STROKE)
        if not len(rows):
            rows, columns = np.array([MARGIN, SIDE - MARGIN - 1]), np.array([0, end - start - 1])
        columns += start
        down = rows + self.slope * columns
        x, y = self.left + columns.min() * self.scale, self.top + down.min() * self.scale
        width, height = ((np.ptp(part) + 1) * self.scale for part in (columns, down))
        return [round(x), round(y), max(round(width), 1), max(round(height), 1)]


def number_strip(image: Image.Image) -> Strip:
    """Find the row of ink in an image of one number, in any colour on any other, level or nearly so.

    Rules, frames, underlines and specks are left out.
    """
    small = shrunk(image, _LONGEST)
    grey = grey_levels(np.asarray(small.convert("RGB")))
    if is_photograph(grey):
        grey = without_rules(grey)
    ink, noise = contrast(grey)
    strong = strongest(ink)
    if strong < max(_LEAST_CONTRAST, 4 * noise):
        return _rejected("blank image" if strong < _LEAST_CONTRAST else "noise without a shape")
    strokes = _row(ink, max(_STROKE * strong, 2.5 * noise))
    floor, strong = 2.5 * noise, strongest(ink[strokes])
    soft = ((ink - floor) / (strong - floor)).clip(0, 1) * cv2.dilate(strokes.view(np.uint8), np.ones((3, 3), np.uint8))
    row, down, slope = _levelled(soft.astype(np.float32))
    strip, factor = fitted_strip(row), image.width / small.width
    top = strip.top - down + slope * strip.left
    return replace(strip, left=strip.left * factor, top=top * factor, scale=strip.scale * factor, slope=slope)


def _row(ink: Floats, level: float) -> Mask:
    """Return the parts (H, W) of the ink above `level` that are in the row of the largest one."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((ink > level).view(np.uint8))
    weights = np.bincount(labels.ravel(), ink.ravel(), count)[1:]
    order = np.argsort(-weights)[:_MOST]
    weights, (left, top, width, height) = weights[order], stats[1:][order, :4].T.astype(np.int64)
    right, bottom = left + width, top + height
    inside = (left[:, None] < left) & (top[:, None] < top) & (right[:, None] > right) & (bottom[:, None] > bottom)
    frames = inside @ weights > _FRAMED * weights
    flat = width > 8 * height  # an underline
    spanning = (width == ink.shape[1]) | (height == ink.shape[0])
    scores = weights * np.where(frames, 0, np.where(spanning | flat, 0.002, 1))
    main = int(scores.argmax())
    relevant = scores >= _SMALL * scores[main]
    across = np.maximum(left[:, None] - right, left - right[:, None])
    down = np.maximum(top[:, None] - bottom, top - bottom[:, None])
    beside = (down <= -_BESIDE * np.minimum(height[:, None], height)) & (across <= _APART * height[main])
    above = (across < 0) & (down <= _ABOVE * height[main])
    linked = (beside | above) & relevant[:, None] & relevant
    row = np.zeros(len(order), bool)
    row[main] = True
    while not np.array_equal(grown := linked[row].any(0) | row, row):
        row = grown
    table = np.zeros(count, bool)
    table[1 + order[row]] = True
    strokes: Mask = table[labels]
    return strokes


def _levelled(ink: Floats) -> tuple[Floats, float, float]:
    """Return a long row of ink (H, W) levelled by a shear, and how far its left end moved down and its slope was."""
    top, bottom, left, right = extent(ink > _STROKE)
    if right - left < _LONG * (bottom - top):
        return ink, 0.0, 0.0
    columns = ink.sum(0)
    x, y = np.arange(ink.shape[1], dtype=np.float32), np.arange(ink.shape[0], dtype=np.float32) @ ink
    inked = columns > 0
    slope = float(np.polyfit(x[inked], y[inked] / columns[inked], 1, w=np.sqrt(columns[inked]))[0])
    if abs(slope) > _STEEP:
        return ink, 0.0, 0.0
    drift = slope * ink.shape[1]
    down = max(drift, 0.0)
    size = (ink.shape[1], ink.shape[0] + math.ceil(abs(drift)))
    shear = np.array([[1, 0, 0], [-slope, 1, down]], np.float32)
    return np.asarray(cv2.warpAffine(ink, shear, size), np.float32), down, slope


def fitted_strip(ink: Floats) -> Strip:
    """Fit ink (H, W) of 0 to 1 into a strip."""
    top, bottom, left, right = extent(ink > _STROKE)
    if bottom - top < 4:
        return _rejected("ink too small for a digit")
    scale = (bottom - top) / BOX
    width = max(round((right - left) / scale), 1)
    if width > MAX_WIDTH - 2 * MARGIN:
        return _rejected("more than 12 digits, or no row of digits")
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    fitted = np.asarray(cv2.resize(ink[top:bottom, left:right], (width, BOX), interpolation=method)).clip(0, 1)
    columns = width + 2 * MARGIN
    strip = np.zeros((SIDE, columns + columns % 2), np.uint8)
    strip[MARGIN : MARGIN + BOX, MARGIN : MARGIN + width] = np.rint(255 * fitted / max(float(fitted.max()), 1e-6))
    return Strip(strip, left - MARGIN * scale, top - MARGIN * scale, scale)


def _rejected(reason: str) -> Strip:
    return Strip(np.zeros((SIDE, 2 * MARGIN), np.uint8), reason=reason)
