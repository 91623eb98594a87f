"""Objects in photographs: preprocessing and outputs of a YOLOX detector of COCO's 80 classes (arXiv 2107.08430)."""

from dataclasses import dataclass
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from app.images.pixels import Floats

DETECTOR_SIZE: Final = 416
QUICK_SIZE: Final = 320  # of a letterbox that is seen in half the time
MIN_SCORE: Final = 0.3  # of a detection
MAX_OVERLAP: Final = 0.45  # intersection over union of two boxes of a label
MAX_DETECTIONS: Final = 50
_LABELS = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
LABELS: Final = tuple(_LABELS.split(","))
_PADDING: Final = 114  # grey level
_STRIDES: Final = (8, 16, 32)


@dataclass(frozen=True, slots=True)
class Detection:
    """An object that the detector sees."""

    label: str  # one of LABELS
    score: float  # 0 to 1
    box: tuple[float, float, float, float]  # left, top, width, height as shares of the photograph's sides


class Letterbox(NamedTuple):
    """A whole image in its proportions, padded on the right and below."""

    pixels: Floats  # (1, 3, H, W) BGR of 0 to 255; both sides are multiples of 32
    image: tuple[int, int]  # width and height of the image in it


def letterboxed(image: Image.Image, side: int = DETECTOR_SIZE, *, trimmed: bool = False) -> Letterbox:
    """Return the image in a square of `side` pixels or, `trimmed`, in the least part of it that holds the image."""
    ratio = min(side / image.width, side / image.height)
    width, height = (max(int(length * ratio), 1) for length in image.size)
    least = _STRIDES[-1] if trimmed else side
    canvas = np.full((1, 3, -(-height // least) * least, -(-width // least) * least), _PADDING, np.float32)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    canvas[0, :, :height, :width] = np.asarray(resized).transpose(2, 0, 1)[::-1]
    return Letterbox(canvas, (width, height))


def detections(output: Floats, letterbox: Letterbox) -> list[Detection]:
    """Return the objects in the detector's output (cells, 85), best first, one of overlapping boxes of a label.

    The cells are those of strides of 8, 16 and 32 pixels, 3549 in a square of 416.
    """
    (possible,) = np.nonzero(output[:, 4] >= MIN_SCORE)
    scores = output[possible, 4:5] * output[possible, 5:]  # (P, 80)
    sure = scores.max(1) >= MIN_SCORE
    candidates, scores = possible[sure], scores[sure]
    labels, best = scores.argmax(1), scores.max(1)
    boxes = _boxes(output[candidates, :4], candidates, letterbox)
    kept = cv2.dnn.NMSBoxesBatched(boxes.tolist(), best.tolist(), labels.tolist(), MIN_SCORE, MAX_OVERLAP)
    sides = np.array(letterbox.image * 2)
    found = list[Detection]()
    for index in sorted(np.asarray(kept, int).ravel().tolist(), key=lambda index: -best[index]):
        left, top, width, height = boxes[index] / sides
        right, bottom = min(left + width, 1.0), min(top + height, 1.0)
        left, top = max(left, 0.0), max(top, 0.0)
        box = (float(left), float(top), float(right - left), float(bottom - top))
        found.append(Detection(LABELS[labels[index]], float(best[index]), box))
    return found[:MAX_DETECTIONS]


def _boxes(relative: Floats, cells: npt.NDArray[np.int64], letterbox: Letterbox) -> Floats:
    """Boxes relative to their cells (N, 4) -> left, top, width, height in pixels of the letterbox."""
    corners, strides = [], []
    for stride in _STRIDES:
        down, across = np.indices([side // stride for side in letterbox.pixels.shape[2:]])
        corners.append(np.stack([across.ravel(), down.ravel()], 1))
        strides.append(np.full((across.size, 1), stride))
    scale = np.concatenate(strides)[cells]
    size = np.exp(relative[:, 2:]) * scale
    corner = (relative[:, :2] + np.concatenate(corners)[cells]) * scale - size / 2
    return np.concatenate([corner, size], 1).astype(np.float32)
