"""Photographs as the network that looks at them wants them."""

from typing import Final

import numpy as np
from PIL import Image

from app.images.pixels import Bytes, Floats

PHOTO_SIZE: Final = 224

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's, of red, green and blue from 0 to 1
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def photo(picture: Image.Image) -> Bytes:
    """(224, 224, 3) RGB: the whole picture, squeezed; one of that size already is returned bit for bit."""
    picture = picture.convert("RGB")
    if picture.size != (PHOTO_SIZE, PHOTO_SIZE):
        picture = picture.resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.BICUBIC)
    return np.array(picture)


def normalised(pixels: Bytes) -> Floats:
    """(..., H, W, 3) RGB -> (..., 3, H, W) with ImageNet's mean and deviation."""
    scaled = (pixels.astype(np.float32) / 255 - _MEAN) / _DEVIATION
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))
