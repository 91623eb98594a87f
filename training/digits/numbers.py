"""Handwritten numbers composed of MNIST's digits: spacing, touching, slant and sizes as in a row of one hand."""

from typing import Final

import cv2
import numpy as np
from PIL import Image

from app.images.digits.strip import Strip, fitted_strip, number_strip
from training.digits.composing import Ink, Pixels, Rng, enlarged, plain
from training.digits.data import Digits

MAX_DIGITS: Final = 12
P_TOUCHING: Final = 0.35  # share of numbers whose digits touch
P_PAGE: Final = 0.15  # share of training strips that are found on an image, as in the server
HEIGHT: Final = 32  # pixels of a digit, on average


def composed_number(digits: Digits, length: int, rng: Rng, *, touching: bool | None = None) -> tuple[Ink, list[int]]:
    """Return the ink (H, W) of a random number of `length` digits, and its digits."""
    chosen = rng.integers(len(digits), size=length)
    touching = bool(rng.random() < P_TOUCHING) if touching is None else touching
    spread = (-0.12, 0.02) if touching else (0.05, 0.45)
    usual, height = rng.uniform(*spread), HEIGHT * rng.uniform(0.8, 1.3)
    canvas, end, down = np.zeros((round(4 * height), round(2 * height * length + 40)), np.float32), 10.0, 0.0
    for index in chosen:
        ink = enlarged(digits.images[index].numpy(), height * rng.uniform(0.85, 1.15))
        gap = usual + (rng.uniform(-0.05, 0.03) if touching else rng.uniform(-0.04, 0.15))
        down += rng.normal(0, 0.03 * height)
        top, left = round(2.5 * height + down - len(ink)), max(round(end + gap * height), 0)
        part = canvas[top : top + len(ink), left : left + ink.shape[1]]
        np.maximum(part, ink[: len(part)], out=part)
        end = left + ink.shape[1]
    slant = rng.uniform(-0.25, 0.25)
    turn = np.array([[1, slant, 20 - 1.5 * height * slant], [rng.uniform(-0.04, 0.04), 1, 0]], np.float32)
    size = (round(end + 2 * height), canvas.shape[0] + 20)
    return np.asarray(cv2.warpAffine(canvas, turn, size), np.float32), digits.labels[chosen].tolist()


def number_image(digits: Digits, length: int, rng: Rng, *, touching: bool | None = None) -> tuple[Pixels, list[int]]:
    """Return an image (H, W) of a random number, as drawn or scanned, and its digits."""
    ink, labels = composed_number(digits, length, rng, touching=touching)
    rows, columns = np.flatnonzero(ink.max(1) > 0.4), np.flatnonzero(ink.max(0) > 0.4)
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = rng.uniform(0.8, 3)
    size = (round(ink.shape[1] * scale), round(ink.shape[0] * scale))
    grown = np.asarray(cv2.resize(ink.astype(np.float32), size, interpolation=cv2.INTER_LINEAR))
    pad = round(size[1] * rng.uniform(0.2, 0.8))
    return plain(np.pad(grown, pad), rng), labels


def training_strip(digits: Digits, length: int, rng: Rng) -> tuple[Strip, list[int]]:
    """Return a strip with random strokes and blur, and its digits."""
    if rng.random() < P_PAGE:
        image, labels = number_image(digits, length, rng)
        strip = number_strip(Image.fromarray(image))
        if strip.reason is None:
            return strip, labels
    ink, labels = composed_number(digits, length, rng)
    ink = ink.astype(np.float32)
    kind = rng.random()
    kernel = np.ones((2, 2), np.uint8)
    if kind < 0.25:
        ink = np.asarray(cv2.dilate(ink, kernel), np.float32)
    elif kind < 0.4:
        ink = np.asarray(cv2.erode(ink, kernel), np.float32) * 0.7 + ink * 0.3
    if rng.random() < 0.3:
        ink = np.asarray(cv2.GaussianBlur(ink, (0, 0), rng.uniform(0.5, 1.5)), np.float32)
    ink = np.clip(ink * rng.uniform(0.8, 1.4), 0, 1)
    return fitted_strip(ink.astype(np.float32)), labels
