"""Tags of a photograph: the labels of detected objects, each with its score and number in classes."""

from collections.abc import Iterable
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from app.images.objects import LABELS, Detection

TAGS: Final = 8  # slots of a photograph
NO_TAG: Final = len(LABELS)  # the label of the first slot of a photograph without tags
PADDING: Final = NO_TAG + 1  # the label of slots that are empty
COUNTS: Final = 3  # one, two, many
LEVELS: Final = (0.45, 0.6, 0.75, 0.85)  # scores that begin a higher class
KINDS: Final = (len(LEVELS) + 1) * COUNTS  # of a tag: its class of score and number

Slots: TypeAlias = npt.NDArray[np.int64]

_INDEX = {label: index for index, label in enumerate(LABELS)}


def tag_slots(detections: Iterable[Detection]) -> Slots:
    """Return the tags (8, 2) of detections in the order of their scores: label and kind, an object label a row."""
    objects: dict[int, list[float]] = {}
    for detection in detections:
        objects.setdefault(_INDEX[detection.label], []).append(detection.score)
    return slots((label, kind(max(scores), len(scores))) for label, scores in objects.items())


def slots(tags: Iterable[tuple[int, int]]) -> Slots:
    """Return the first 8 tags (label, kind) as rows (8, 2), filled with padding."""
    rows = np.full((TAGS, 2), (PADDING, 0), np.int64)
    rows[0, 0] = NO_TAG
    for row, tag in zip(rows, tags, strict=False):
        row[:] = tag
    return rows


def kind(score: float, count: int) -> int:
    """Return the kind of a tag of so many objects, the best of this score."""
    return sum(score >= level for level in LEVELS) * COUNTS + min(count, COUNTS) - 1
