"""Outputs of the object detector: letterbox, boxes, overlapping boxes."""

import numpy as np
import pytest
from PIL import Image

from app.images import LABELS, detections, letterboxed

CELLS = 52 * 52 + 26 * 26 + 13 * 13


def output(*objects: tuple[str, float, tuple[float, float, float, float]]) -> np.ndarray:
    """A detector's output with objects: label, score, box (left, top, width, height) in pixels of the letterbox."""
    rows = np.zeros((CELLS, 85), np.float32)
    for label, score, (left, top, width, height) in objects:
        across, down = (left + width / 2) / 32, (top + height / 2) / 32
        cell = 52 * 52 + 26 * 26 + int(down) * 13 + int(across)
        rows[cell, :4] = across % 1, down % 1, np.log(width / 32), np.log(height / 32)
        rows[cell, 4], rows[cell, 5 + LABELS.index(label)] = 1.0, score
    return rows


def test_the_letterbox_keeps_proportions_and_pads_below_and_right() -> None:
    wide = Image.new("RGB", (200, 100), (255, 0, 10))
    found = letterboxed(wide).pixels
    assert found.shape == (1, 3, 416, 416)
    assert (found[0, :, :208] == np.array([10, 0, 255])[:, None, None]).all()  # blue, green, red
    assert (found[0, :, 208:] == 114).all()


@pytest.mark.parametrize(
    ("size", "pixels", "inside"),
    [((500, 375), (288, 352), (352, 264)), ((100, 300), (352, 128), (117, 352)), ((50, 50), (352, 352), (352, 352))],
)
def test_a_trimmed_letterbox_has_least_padding(
    size: tuple[int, int], pixels: tuple[int, int], inside: tuple[int, int]
) -> None:
    found = letterboxed(Image.new("RGB", size), 352, trimmed=True)
    assert found.pixels.shape == (1, 3, *pixels)
    assert found.image == inside


def test_boxes_of_a_trimmed_letterbox_are_shares_of_the_photograph_too() -> None:
    letterbox = letterboxed(Image.new("RGB", (500, 375)), 352, trimmed=True)
    cells = np.zeros((44 * 36 + 22 * 18 + 11 * 9, 85), np.float32)
    row = cells[44 * 36 + 22 * 18 + 4 * 11 + 5]  # the cell from 160, 128
    row[:5] = 0.5, 0.25, np.log(2), np.log(3), 1.0
    row[5 + LABELS.index("cup")] = 0.9
    (found,) = detections(cells, letterbox)
    assert found.box == pytest.approx(((176 - 32) / 352, (136 - 48) / 264, 64 / 352, 96 / 264), abs=1e-5)


def test_boxes_are_shares_of_the_photograph() -> None:
    image = Image.new("RGB", (200, 100))
    (found,) = detections(output(("dog", 0.8, (104, 52, 208, 104))), letterboxed(image))
    assert found.label == "dog"
    assert found.score == pytest.approx(0.8)
    assert found.box == pytest.approx((0.25, 0.25, 0.5, 0.5), abs=1e-5)


def test_boxes_end_with_the_photograph() -> None:
    image = Image.new("RGB", (100, 100))
    (found,) = detections(output(("dog", 0.8, (300, 300, 200, 200))), letterboxed(image))
    left, top, width, height = found.box
    assert left + width <= 1
    assert top + height <= 1


def test_the_best_of_overlapping_boxes_of_a_label_is_kept() -> None:
    image = Image.new("RGB", (416, 416))
    crowd = output(
        ("dog", 0.6, (100, 100, 100, 100)),
        ("dog", 0.9, (130, 100, 100, 100)),
        ("cat", 0.5, (100, 130, 100, 100)),
        ("dog", 0.7, (300, 300, 64, 64)),
        ("dog", 0.2, (10, 10, 64, 64)),
    )
    assert [(d.label, round(d.score, 3)) for d in detections(crowd, letterboxed(image))] == [
        ("dog", 0.9),
        ("dog", 0.7),
        ("cat", 0.5),
    ]


def test_nothing_is_seen_in_an_empty_output() -> None:
    assert detections(output(), letterboxed(Image.new("RGB", (30, 40)))) == []
