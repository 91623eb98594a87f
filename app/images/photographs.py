"""Preprocessing of photographs for the image encoder."""

from typing import Final

import numpy as np
from PIL import Image

from app.images.pixels import Bytes, Floats

PHOTO_SIZE: Final = 224
ENCODER_SIZE: Final = 260  # of EfficientNet-Lite2

_LONGEST: Final = 65_535  # pixels of a side that is resized at once; more would need much memory for its weights

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's, of red, green and blue from 0 to 1
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


def photo(image: Image.Image, side: int = PHOTO_SIZE) -> Bytes:
    """(side, side, 3) RGB: the whole image, resized without keeping its proportions; unchanged if it has that size."""
    image = image.convert("RGB")
    if max(image.size) > _LONGEST:
        image = image.reduce((-(-image.width // _LONGEST), -(-image.height // _LONGEST)))
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC)
    return np.array(image)


def normalised(pixels: Bytes) -> Floats:
    """(..., H, W, 3) RGB -> (..., 3, H, W) with ImageNet's mean and deviation."""
    scaled = (pixels.astype(np.float32) / 255 - _MEAN) / _DEVIATION
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))


def encoder_input(pixels: Bytes) -> Floats:
    """(..., H, W, 3) RGB -> (..., 3, H, W) as EfficientNet-Lite takes it, (RGB - 127) / 128."""
    return np.ascontiguousarray(np.moveaxis((pixels.astype(np.float32) - 127) / 128, -1, -3))
