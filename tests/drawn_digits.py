"""Digits of straight strokes, framed as MNIST's are: enough to be learnt in a few steps, and drawn in no time."""

import numpy as np
import numpy.typing as npt
import torch

from training.digits.data import DigitCorpus, Digits

SIDE, HEIGHT, WIDTH = 28, 20, 12
STROKES = {  # of a display of seven strokes: rows and columns of each
    "a": (slice(0, 3), slice(0, WIDTH)),
    "b": (slice(0, 11), slice(WIDTH - 3, WIDTH)),
    "c": (slice(9, HEIGHT), slice(WIDTH - 3, WIDTH)),
    "d": (slice(HEIGHT - 3, HEIGHT), slice(0, WIDTH)),
    "e": (slice(9, HEIGHT), slice(0, 3)),
    "f": (slice(0, 11), slice(0, 3)),
    "g": (slice(9, 12), slice(0, WIDTH)),
}
SHAPES = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")


def drawn(digit: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """(28, 28), light on black: leaning to one side, and of an ink that is never quite the same."""
    image = np.zeros((SIDE, SIDE), np.uint8)
    for stroke in SHAPES[digit]:
        image[4:24, 8:20][STROKES[stroke]] = rng.integers(200, 256)
    slant = rng.uniform(-0.2, 0.2)
    leaning = [np.roll(row, round(slant * (SIDE / 2 - place))) for place, row in enumerate(image)]
    return _centred(np.stack(leaning))


def digits(count: int, seed: int) -> Digits:
    """So many of them, of each of the ten as many as of the others."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10)
    images = np.stack([drawn(int(label), rng) for label in labels])
    return Digits(torch.from_numpy(images), torch.from_numpy(labels))


def corpus(train: int = 60, valid: int = 10, test: int = 30) -> DigitCorpus:
    """A corpus in three parts that share no image."""
    return DigitCorpus(digits(train, 1), digits(valid, 2), digits(test, 3), folder=None)


def _centred(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    ink = image.astype(float)
    middle = [(ink.sum(1 - axis) @ np.arange(SIDE)) / ink.sum() for axis in (0, 1)]
    return np.roll(image, [round(SIDE / 2 - place) for place in middle], (0, 1))
