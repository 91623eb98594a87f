"""The strip of a handwritten number: its row of ink, 20 pixels high, on 28 rows of ground."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from PIL import Image

from app.images.digits.framing import BOX, SIDE, grey_levels, is_photograph, shrunk
from app.images.digits.ground import contrast, strongest
from app.images.digits.rules import without_rules
from app.images.pixels import Bytes, Floats, extent

MARGIN: Final = (SIDE - BOX) // 2  # pixels of ground around the ink
MAX_WIDTH: Final = 400  # of a strip: twelve digits need about 240

_LONGEST = 1536  # pixels of a side: a larger image is shrunk
_LEAST_CONTRAST = 8  # grey levels
_STROKE = 0.4  # of the strongest ink: what is part of a stroke
_SMALL = 0.02  # of the largest part's ink: a part with less is a speck
_ROW = 0.3  # of a part's height: what must overlap with the row of the largest part


@dataclass(frozen=True)
class Strip:
    """A number's row of ink, light on black, and where it is in the image; without a row, the reason why."""

    pixels: Bytes  # (28, W), W even
    left: float = 0.0  # of the strip, in pixels of the image
    top: float = 0.0
    scale: float = 1.0  # pixels of the image a pixel of the strip
    reason: str | None = None

    def box(self, start: int, end: int) -> list[int]:
        """Return left, top, width and height in the image of the ink in columns `start` to `end`, end excluded."""
        ink = self.pixels[:, start:end] > 255 * _STROKE
        top, bottom, left, right = extent(ink) if ink.any() else (MARGIN, SIDE - MARGIN, 0, end - start)
        x, y = self.left + (start + left) * self.scale, self.top + top * self.scale
        width, height = (right - left) * self.scale, (bottom - top) * self.scale
        return [round(x), round(y), max(round(width), 1), max(round(height), 1)]


def number_strip(image: Image.Image) -> Strip:
    """Find the row of ink in an image of one number, in any colour on any other."""
    small = shrunk(image, _LONGEST)
    factor = image.width / small.width
    grey = grey_levels(np.asarray(small.convert("RGB")))
    if is_photograph(grey):
        grey = without_rules(grey)
    ink, noise = contrast(grey)
    strong = strongest(ink)
    if strong < max(_LEAST_CONTRAST, 4 * noise):
        return _rejected("blank image" if strong < _LEAST_CONTRAST else "noise without a shape")
    level = max(_STROKE * strong, 2.5 * noise)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((ink > level).view(np.uint8))
    weights = np.bincount(labels.ravel(), ink.ravel(), len(stats))[1:]
    _, top, width, height, _ = stats[1:].T.astype(np.int64)
    spanning = (width == grey.shape[1]) | (height == grey.shape[0])
    flat = width > 8 * height  # an underline
    worth = weights * np.where(spanning | flat, 0.02, 1)
    main = int(worth.argmax())
    overlap = np.minimum(top + height, top[main] + height[main]) - np.maximum(top, top[main])
    row = (worth >= _SMALL * worth[main]) & (overlap >= _ROW * np.minimum(height, height[main]))
    table = np.concatenate([[False], row])
    strokes = table[labels]
    floor = 2.5 * noise
    soft = ((ink - floor) / (strong - floor)).clip(0, 1) * cv2.dilate(strokes.view(np.uint8), np.ones((3, 3), np.uint8))
    return fitted_strip(soft.astype(np.float32), factor)


def fitted_strip(ink: Floats, factor: float = 1.0) -> Strip:
    """Fit ink (H, W) of 0 to 1 into a strip; `factor`: pixels of the image a pixel of the ink."""
    top, bottom, left, right = extent(ink > _STROKE)
    scale = (bottom - top) / BOX
    width = max(round((right - left) / scale), 1)
    if width > MAX_WIDTH - 2 * MARGIN:
        return _rejected("more than 12 digits, or no row of digits")
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    fitted = np.asarray(cv2.resize(ink[top:bottom, left:right], (width, BOX), interpolation=method)).clip(0, 1)
    columns = width + 2 * MARGIN
    strip = np.zeros((SIDE, columns + columns % 2), np.uint8)
    strip[MARGIN : MARGIN + BOX, MARGIN : MARGIN + width] = np.rint(255 * fitted / max(float(fitted.max()), 1e-6))
    step = scale * factor
    return Strip(strip, left * factor - MARGIN * step, top * factor - MARGIN * step, step)


def _rejected(reason: str) -> Strip:
    return Strip(np.zeros((SIDE, 2 * MARGIN), np.uint8), reason=reason)
