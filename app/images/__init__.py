"""Image preprocessing from bytes to model inputs: checked decoding, framing of digits and of photographs.

    bytes --decoded--> RGB image   --framed--> (28, 28) grey digit, framed as MNIST's are
                                   --number_strip--> (28, W) grey row of digits
                   --photo---> (224, 224, 3) RGB --normalised--> (3, 224, 224) floats
                               (260, 260, 3) RGB --encoder_input--> (3, 260, 260) floats
                   --letterboxed--> (1, 3, H, W) BGR of the object detector, whose output --detections--> boxes

Training, evaluation and the server call these same functions. OpenCV computes in the thread that calls it and prints
nothing.
"""

import cv2

from app.images.decoding import MAX_PIXELS, decoded, is_small, upright_size
from app.images.digits.framing import BOX, SIDE, Framed, framed, framed_array, turned
from app.images.digits.strip import Strip, number_strip
from app.images.objects import DETECTOR_SIZE, LABELS, QUICK_SIZE, Detection, Letterbox, detections, letterboxed
from app.images.photographs import ENCODER_SIZE, PHOTO_SIZE, encoder_input, normalised, photo
from app.images.pixels import Bytes, Floats, Mask, png

__all__ = [
    "BOX",
    "DETECTOR_SIZE",
    "ENCODER_SIZE",
    "LABELS",
    "MAX_PIXELS",
    "PHOTO_SIZE",
    "QUICK_SIZE",
    "SIDE",
    "Bytes",
    "Detection",
    "Floats",
    "Framed",
    "Letterbox",
    "Mask",
    "Strip",
    "decoded",
    "detections",
    "encoder_input",
    "framed",
    "framed_array",
    "is_small",
    "letterboxed",
    "normalised",
    "number_strip",
    "photo",
    "png",
    "turned",
    "upright_size",
]

cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
