"""Ink and grounds that images of digits are composed of.

Ink is a layer (H, W) of 0 to 1; a ground has grey levels (H, W) of 0 to 255.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from skimage.morphology import skeletonize

Pixels: TypeAlias = npt.NDArray[np.uint8]
Ink: TypeAlias = npt.NDArray[np.floating]
Rng: TypeAlias = np.random.Generator


def levels(values: npt.NDArray[np.floating]) -> Pixels:
    """Clip to whole grey levels."""
    pixels: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return pixels


def enlarged(digit: Pixels, height: float) -> Ink:
    """The digit's ink, cropped to its box and scaled so that its longer side is `height` pixels."""
    rows, columns = np.flatnonzero(digit.max(1) > 40), np.flatnonzero(digit.max(0) > 40)
    cut = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32) / 255
    scale = height / max(cut.shape)
    size = (max(round(cut.shape[1] * scale), 3), max(round(cut.shape[0] * scale), 3))
    if scale < 1:
        return np.asarray(cv2.resize(cut, size, interpolation=cv2.INTER_AREA), np.float32)
    grown = cv2.resize(cut, size, interpolation=cv2.INTER_CUBIC)
    sharp: Ink = np.clip(0.5 + (grown - 0.45) * min(scale, 6), 0, 1)
    return sharp


def on_canvas(ink: Ink, rng: Rng, margin: tuple[float, float] = (0.2, 0.9)) -> Ink:
    """The ink at a random position of a canvas; margins are shares of its longer side."""
    side = max(ink.shape)
    top, bottom, left, right = (round(side * rng.uniform(*margin)) for _ in range(4))
    return np.pad(ink, ((top, bottom), (left, right)))


def drawn_digit(digit: Pixels, rng: Rng, margin: tuple[float, float] = (0.2, 0.9)) -> Ink:
    """The digit at a random size and position."""
    return on_canvas(enlarged(digit, rng.uniform(60, 200)), rng, margin)


def inked(paper: Ink, ink: Ink, level: float) -> Pixels:
    """Ink of one grey level on paper (H, W) of 0..255."""
    return levels(paper * (1 - ink) + level * ink)


def plain(ink: Ink, rng: Rng) -> Pixels:
    """Dark ink on light paper, or now and then light on dark, with little noise."""
    paper, pen = rng.uniform(200, 255), rng.uniform(0, 70)
    if rng.random() < 0.15:
        paper, pen = pen, paper
    noise = rng.normal(0, rng.uniform(0, 4), ink.shape).astype(np.float32)
    return inked(np.float32(paper) + noise, ink, pen)


def stroke_width(ink: Ink) -> float:
    """The width of its strokes in pixels: twice the area by the outline's length."""
    outline = float(np.abs(np.diff(ink, axis=0)).sum() + np.abs(np.diff(ink, axis=1)).sum())
    return 2.2 * float(ink.sum()) / max(outline, 1)


def ink_box(ink: Ink) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the ink."""
    rows, columns = np.flatnonzero(ink.max(1) > 0.5), np.flatnonzero(ink.max(0) > 0.5)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def with_line(ink: Ink, ends: Sequence[tuple[float, float]], width: float) -> Ink:
    """The ink and a line through the points."""
    layer = np.zeros(ink.shape, np.uint8)
    points = np.rint(np.array(ends, np.float32) * 8).astype(np.int32)
    cv2.polylines(layer, [points], False, 255, max(round(width), 1), cv2.LINE_AA, 3)
    return np.maximum(ink, layer.astype(np.float32) / 255)


def skeleton_points(ink: Ink, spacing: float, rng: Rng) -> list[tuple[float, float]]:
    """Points (x, y) of the strokes' middle lines, each at least `spacing` pixels from the others."""
    middle = skeletonize(ink > 0.5)  # type: ignore[no-untyped-call]
    points = np.argwhere(middle)[:, ::-1].astype(np.float64)
    kept = list[tuple[float, float]]()
    at = points[int(rng.integers(len(points)))]
    free = np.ones(len(points), bool)
    while free.any():
        kept.append((float(at[0]), float(at[1])))
        away = np.hypot(*(points - at).T)
        free &= away >= spacing
        if free.any():
            at = points[free][away[free].argmin()]
    return kept


def smooth_noise(shape: tuple[int, int], scale: float, rng: Rng) -> Ink:
    """Smooth noise of unit deviation; `scale` is the size of its features in pixels."""
    small = rng.standard_normal([max(math.ceil(side / scale), 2) + 1 for side in shape]).astype(np.float32)
    field = cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(field / max(float(field.std()), 1e-6), np.float32)


def gradient(shape: tuple[int, int], angle: float) -> Ink:
    """A gradient from about -1 to 1 over the image, in the direction `angle`."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    y, x = (2 * y / shape[0] - 1), (2 * x / shape[1] - 1)
    return np.asarray(x * math.cos(angle) + y * math.sin(angle), np.float32)


def photographed_paper(shape: tuple[int, int], rng: Rng) -> Ink:
    """Light paper, lit from one side, with grain and sensor noise."""
    light = rng.uniform(185, 235) * (1 - rng.uniform(0, 0.2) * gradient(shape, rng.uniform(0, math.tau)) / 2)
    grain = rng.uniform(0, 2) * smooth_noise(shape, 3, rng) + rng.normal(0, rng.uniform(1, 4), shape)
    return np.asarray(light + grain, np.float32)


def lit(ink: Ink, rng: Rng) -> Pixels:
    """Coloured light on a dark board, RGB."""
    colours = ((255, 40, 30), (60, 255, 70), (255, 170, 30), (90, 160, 255), (255, 255, 255))
    light = np.array(colours[int(rng.integers(len(colours)))], np.float32) * rng.uniform(0.7, 1)
    board = rng.uniform(0, 35) + rng.normal(0, rng.uniform(0, 3), (*ink.shape, 1))
    glow = cv2.GaussianBlur(ink, (0, 0), max(ink.shape) / 60) * np.float32(rng.uniform(0, 0.3))
    shine = np.maximum(ink, glow)[..., None]
    return levels(board * (1 - shine) + light * shine)


def pair(digit: Pixels, other: Pixels, rng: Rng, gap: tuple[float, float]) -> Ink:
    """Two digits on one line, `gap` heights apart."""
    height = rng.uniform(50, 160)
    first, second = enlarged(digit, height), enlarged(other, height * rng.uniform(0.85, 1.1))
    start = max(first.shape[1] + round(height * rng.uniform(*gap)), 0)
    ink = np.zeros((max(len(first), len(second)), max(start + second.shape[1], first.shape[1])), np.float32)
    ink[-len(first) :, : first.shape[1]] = first
    part = ink[-len(second) :, start : start + second.shape[1]]
    np.maximum(part, second, out=part)
    return ink
