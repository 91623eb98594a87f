"""Objects in photographs: preprocessing and outputs of a YOLOX detector of COCO's 80 classes (arXiv 2107.08430)."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from PIL import Image

from app.images.pixels import Floats

DETECTOR_SIZE: Final = 416
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


def letterboxed(image: Image.Image) -> Floats:
    """(1, 3, 416, 416) BGR of 0 to 255: the whole image in its proportions, padded right and below."""
    canvas = np.full((DETECTOR_SIZE, DETECTOR_SIZE, 3), _PADDING, np.float32)
    width, height = _fitted(image)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    canvas[:height, :width] = np.asarray(resized)[..., ::-1]
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)[None])


def detections(output: Floats, image: Image.Image) -> list[Detection]:
    """Return the objects in the detector's output (3549, 85) for an image, by score, the best of overlapping boxes."""
    scores = output[:, 4:5] * output[:, 5:]  # (3549, 80)
    labels = scores.argmax(1)
    best = scores.max(1)
    candidates = np.flatnonzero(best >= MIN_SCORE)
    boxes = _boxes(output[:, :4])[candidates]
    kept = cv2.dnn.NMSBoxesBatched(
        boxes.tolist(), best[candidates].tolist(), labels[candidates].tolist(), MIN_SCORE, MAX_OVERLAP
    )
    sides = np.array(_fitted(image) * 2)
    found = list[Detection]()
    for index in sorted(np.asarray(kept, int).ravel().tolist(), key=lambda index: -best[candidates[index]]):
        left, top, width, height = boxes[index] / sides
        right, bottom = min(left + width, 1.0), min(top + height, 1.0)
        left, top = max(left, 0.0), max(top, 0.0)
        row = candidates[index]
        box = (float(left), float(top), float(right - left), float(bottom - top))
        found.append(Detection(LABELS[labels[row]], float(best[row]), box))
    return found[:MAX_DETECTIONS]


def _fitted(image: Image.Image) -> tuple[int, int]:
    """Width and height of the image in the letterbox."""
    ratio = min(DETECTOR_SIZE / image.width, DETECTOR_SIZE / image.height)
    return max(int(image.width * ratio), 1), max(int(image.height * ratio), 1)


def _boxes(cells: Floats) -> Floats:
    """Boxes relative to their cells (3549, 4) -> left, top, width, height in pixels of the letterbox."""
    corners, strides = [], []
    for stride in _STRIDES:
        side = DETECTOR_SIZE // stride
        across, down = np.meshgrid(np.arange(side), np.arange(side))
        corners.append(np.stack([across.ravel(), down.ravel()], 1))
        strides.append(np.full((side * side, 1), stride))
    scale = np.concatenate(strides)
    size = np.exp(cells[:, 2:]) * scale
    corner = (cells[:, :2] + np.concatenate(corners)) * scale - size / 2
    return np.concatenate([corner, size], 1).astype(np.float32)
