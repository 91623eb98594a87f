"""Arrays of pixels: types, extents, neighbours."""

import io
from typing import Any, TypeAlias

import cv2
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
    some = values[:: 1 + values.size // 2**13]
    return float(np.partition(some, some.size // 2, axis=None)[some.size // 2])


def neighbours(mask: Mask) -> Bytes:
    """Return for each pixel how many of the nine in and around it are true."""
    counts = cv2.boxFilter(mask.view(np.uint8), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return np.asarray(counts, np.uint8)
