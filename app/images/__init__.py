"""Image preprocessing from bytes to model inputs: checked decoding, framing of digits and of photographs.

    bytes --decoded--> RGB image   --framed--> (28, 28) grey digit, framed as MNIST's are
                                   --number_strip--> (28, W) grey row of digits
                   --photo---> (224, 224, 3) RGB --normalised--> (3, 224, 224) floats

Training, evaluation and the server call these same functions. OpenCV computes in the thread that calls it and prints
nothing.
"""

import cv2

from app.images.decoding import MAX_PIXELS, decoded, is_small
from app.images.digits.framing import BOX, SIDE, Framed, framed, framed_array, turned
from app.images.digits.strip import Strip, number_strip
from app.images.photographs import PHOTO_SIZE, normalised, photo
from app.images.pixels import Bytes, Floats, Mask, png

__all__ = [
    "BOX",
    "MAX_PIXELS",
    "PHOTO_SIZE",
    "SIDE",
    "Bytes",
    "Floats",
    "Framed",
    "Mask",
    "Strip",
    "decoded",
    "framed",
    "framed_array",
    "is_small",
    "normalised",
    "number_strip",
    "photo",
    "png",
    "turned",
]

cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
