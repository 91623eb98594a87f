"""Handwritten numbers composed of MNIST's digits: spacing, touching, slant and sizes as in a row of one hand."""

import math
from typing import Final, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from app.images import BOX, SIDE
from app.images.digits.strip import MAX_WIDTH, Strip, fitted_strip, number_strip
from training.digits.augmentation import elastic
from training.digits.composing import Ink, Pixels, Rng, enlarged, plain
from training.digits.data import Digits
from training.digits.negatives import training_negative

Labels: TypeAlias = npt.NDArray[np.int64]

MAX_DIGITS: Final = 12
P_TOUCHING: Final = 0.35  # share of numbers whose digits touch
P_PAGE: Final = 0.1  # share of training strips that are found on an image, as in the server
P_NONE: Final = 0.04  # share of training strips without a number
P_WIDE: Final = 0.12  # share of steps whose digits are far apart
P_ELASTIC: Final = 0.7  # share of training strips of distorted digits
NONE: Final = -1  # in place of the digits of no number
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


def training_strips(digits: Digits, length: int, count: int, rng: Rng) -> tuple[list[Pixels], Labels]:
    """Return strips (28, W) of random numbers, and their digits (count, length), all NONE where a strip shows none.

    Most are composed of distorted digits as large as a strip's, a few are found on images, as in the server. Draws from
    torch's global generator too.
    """
    chosen = rng.integers(len(digits), size=(count, length))
    labels, wide = digits.labels.numpy()[chosen], bool(rng.random() < P_WIDE)
    frames = digits.images[chosen.ravel()].float() / 255
    bent = round(P_ELASTIC * count) * length
    frames[:bent] = elastic(frames[:bent])
    kinds, found = rng.random(count), list[Pixels]()
    for index, row in enumerate(frames.numpy().reshape(count, length, SIDE, SIDE)):
        if kinds[index] < P_PAGE:
            image, read = number_image(digits, length, rng)
            strip = number_strip(Image.fromarray(image))
            labels[index] = NONE if strip.reason else read
        elif kinds[index] < P_PAGE + P_NONE:
            letters = int(rng.integers(1, min(length, 4) + 1))  # letters, scribbles, shapes or the like in a row
            parts = [number_strip(Image.fromarray(training_negative(rng))).pixels for _ in range(letters)]
            strip = Strip(np.concatenate(parts, axis=1)[:, :MAX_WIDTH])
            labels[index] = NONE
        else:
            strip = fitted_strip(_composed(row, rng, wide=wide))
        found.append(strip.pixels)
    return found, labels


def _composed(row: npt.NDArray[np.float32], rng: Rng, *, wide: bool) -> npt.NDArray[np.float32]:
    """Return the ink (H, W) of framed digits (length, 28, 28) side by side."""
    low, high = (0.4, 1.3) if wide else (-0.14, 0.04) if rng.random() < P_TOUCHING else (0.0, 0.5)
    usual, on_line = rng.uniform(low, high), rng.random() < 0.5
    ends, cuts = 0.0, list[tuple[int, int, npt.NDArray[np.float32]]]()
    for frame in row:
        inked = frame > 0.2 * frame.max()
        columns, rows = np.flatnonzero(inked.any(0)), np.flatnonzero(inked.any(1))
        cut = frame[:, columns[0] : columns[-1] + 1]
        down = round(rng.normal(0, 0.7)) + (24 - int(rows[-1]) if on_line else 0)
        start = max(round(ends + BOX * (usual + rng.uniform(-0.06, 0.06))), 0)
        cuts.append((start, min(max(down, -8), 8) + 10, cut))
        ends = start + cut.shape[1]
    ink = np.zeros((SIDE + 20, round(ends)), np.float32)
    for start, top, cut in cuts:
        part = ink[top : top + SIDE, start : start + cut.shape[1]]
        np.maximum(part, cut[:, : part.shape[1]], out=part)
    height, width = ink.shape
    slant, slope = rng.uniform(-0.3, 0.3), rng.normal(0, 0.01)
    reach, drift = math.ceil(abs(slant) * height), math.ceil(abs(slope) * width)
    shear = np.array([[1, slant, max(-slant, 0) * height], [slope, 1, max(-slope, 0) * width]], np.float32)
    ink = np.asarray(cv2.warpAffine(ink, shear, (width + reach, height + drift)), np.float32)
    if rng.random() < 0.2:
        ink = np.asarray(cv2.GaussianBlur(ink, (0, 0), rng.uniform(0.4, 1)), np.float32)
    ground, full = rng.uniform(0, 0.2), rng.uniform(0.5, 1)
    return np.asarray(np.clip((ink / ink.max() - ground) / (full - ground), 0, 1), np.float32)
