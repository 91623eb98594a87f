"""Synthetic seven-segment digits, framed like MNIST: fast to draw and learnable in a few steps."""

import numpy as np
import numpy.typing as npt
import torch

from training.digits.data import DigitCorpus, Digits

SIDE, HEIGHT, WIDTH = 28, 20, 12
STROKES = {  # seven segments: rows and columns of each
    "a": (slice(0, 3), slice(0, WIDTH)),
    "b": (slice(0, 11), slice(WIDTH - 3, WIDTH)),
    "c": (slice(9, HEIGHT), slice(WIDTH - 3, WIDTH)),
    "d": (slice(HEIGHT - 3, HEIGHT), slice(0, WIDTH)),
    "e": (slice(9, HEIGHT), slice(0, 3)),
    "f": (slice(0, 11), slice(0, 3)),
    "g": (slice(9, 12), slice(0, WIDTH)),
}
SHAPES = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")


def draw(digit: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Return one digit, (28, 28) light on black, with a random slant and random intensities."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    for stroke in SHAPES[digit]:
        image[4:24, 8:20][STROKES[stroke]] = rng.integers(200, 256)
    slant = rng.uniform(-0.2, 0.2)
    slanted = [np.roll(row, round(slant * (SIDE / 2 - y))) for y, row in enumerate(image)]
    return _centred(np.stack(slanted))


def digits(count: int, seed: int) -> Digits:
    """Return `count` digits with balanced labels."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10)
    images = np.stack([draw(int(label), rng) for label in labels])
    return Digits(torch.from_numpy(images), torch.from_numpy(labels))


def corpus(train: int = 60, valid: int = 10, test: int = 30) -> DigitCorpus:
    """Return a corpus of three disjoint splits."""
    return DigitCorpus(digits(train, 1), digits(valid, 2), digits(test, 3), folder=None)


def _centred(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    ink = image.astype(float)
    middle = [(ink.sum(1 - axis) @ np.arange(SIDE)) / ink.sum() for axis in (0, 1)]
    return np.roll(image, [round(SIDE / 2 - centre) for centre in middle], (0, 1))
