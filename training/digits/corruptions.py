"""The 15 corruptions of MNIST-C (Mu and Gilmer, "A Robustness Benchmark for Computer Vision", arXiv 1906.02337).

Each takes a digit (28, 28), light ink on black, and returns it (28, 28) at the strength of the published static
dataset. Written from the published definitions; where ours differ:

- Random numbers come from the given generator, so no image equals the published one bit for bit.
- Motion blur is ImageMagick's there; here the kernel is computed after its documented definition (one-sided normal
  weights, whole-pixel offsets, edges repeated).
- Levels are rounded to whole numbers at the end.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.feature import canny

Digit: TypeAlias = npt.NDArray[np.uint8]  # (28, 28)
Levels: TypeAlias = npt.NDArray[np.float64]  # (28, 28), 0 black to 1 white
Heights: TypeAlias = npt.NDArray[np.float32]  # (FOG_SIDE, FOG_SIDE), or part of it
Corruption: TypeAlias = Callable[[Digit, np.random.Generator], Digit]

SIDE = 28
MIDDLE = (SIDE - 1) / 2
FOG_SIDE = 256  # of the height map that the fog is cropped from
LINE_FADES = 2.3  # pixels from a line's middle to where its ink ends


def shot_noise(digit: Digit, rng: np.random.Generator) -> Digit:
    """Light counted in few quanta: Poisson, three of them for white."""
    return _digit(rng.poisson(_levels(digit) * 3) / 3)


def impulse_noise(digit: Digit, rng: np.random.Generator) -> Digit:
    """17 % of the pixels replaced, half by white and half by black."""
    white = np.where(rng.random(digit.shape) < 0.5, 255, 0)
    return np.where(rng.random(digit.shape) < 0.17, white, digit).astype(np.uint8)


def glass_blur(digit: Digit, rng: np.random.Generator) -> Digit:
    """Normal blur of 0.7 pixels before and after every other pixel was swapped with a neighbour, in two rounds."""
    blurred = np.floor(_blurred(_levels(digit), 0.7) * 255)
    return _digit(_blurred(_shuffled(blurred, rng, rounds=2) / 255, 0.7))


def motion_blur(digit: Digit, rng: np.random.Generator) -> Digit:
    """Smeared one way, within 45 degrees of the horizontal: normal weights of 3 pixels over 21."""
    angle = math.radians(rng.uniform(-45, 45))
    reach = 20
    padded = np.pad(_levels(digit), reach, mode="edge")
    smeared = np.zeros(digit.shape)
    weights = np.exp(-(np.arange(reach + 1) ** 2) / (2 * 3**2))
    for step, weight in enumerate((weights / weights.sum()).tolist()):
        row = reach + math.ceil(step * math.sin(angle) - 0.5)
        column = reach + math.ceil(step * math.cos(angle) - 0.5)
        smeared += weight * padded[row : row + SIDE, column : column + SIDE]
    return _digit(smeared)


def shear(digit: Digit, rng: np.random.Generator) -> Digit:
    """Sheared by 0.4 radians to the left or the right."""
    angle = 0.4 * _side(rng)
    return _warped(digit, [[math.cos(angle), 0], [-math.sin(angle), 1]])


def scale(digit: Digit) -> Digit:
    """Shrunk to 70 %."""
    return _warped(digit, [[1 / 0.7, 0], [0, 1 / 0.7]])


def rotate(digit: Digit, rng: np.random.Generator) -> Digit:
    """Rotated by 0.4 radians to either side."""
    angle = 0.4 * _side(rng)
    return _warped(digit, [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def brightness(digit: Digit) -> Digit:
    """Half of the full range added."""
    return _digit(_levels(digit) + 0.5)


def translate(digit: Digit, rng: np.random.Generator) -> Digit:
    """Moved by three pixels along both axes; pixels beyond the border are lost."""
    down, right = (3 * _side(rng) for _ in range(2))
    padded = np.pad(digit, 3)
    return padded[3 - down : 3 - down + SIDE, 3 - right : 3 - right + SIDE]


def stripe(digit: Digit) -> Digit:
    """The left and the right quarter inverted."""
    striped = digit.copy()
    for quarter in (striped[:, : SIDE // 4], striped[:, -SIDE // 4 :]):
        np.subtract(255, quarter, out=quarter)
    return striped


def fog(digit: Digit, rng: np.random.Generator) -> Digit:
    """Three times a plasma fractal added, the sum dimmed to the brightness before."""
    levels = _levels(digit)
    brightest = levels.max()
    return _digit((levels + 3 * _plasma(rng)[:SIDE, :SIDE]) * brightest / (brightest + 3))


def spatter(digit: Digit, rng: np.random.Generator) -> Digit:
    """Splashes of mud, a quarter as bright as the ink: blurred normal noise over a threshold, blurred again."""
    liquid = _blurred(rng.normal(0.65, 0.3, digit.shape), 1)
    mud = _blurred(np.where(liquid > 0.65, 1.0, 0.0), 1.5)
    mud[mud < 0.8] = 0
    return _digit(_levels(digit) * (1 - mud) + mud * 63 / 255)


def dotted_line(digit: Digit, rng: np.random.Generator) -> Digit:
    """A straight line from the left border to the right, two columns of every four left out."""
    first, last = rng.integers(0, 27, 2)
    line = _line((0, first), (27, last))
    line[:, np.arange(SIDE) // 2 % 2 == 0] = 0
    return _digit(_levels(digit) + line)


def zigzag(digit: Digit, rng: np.random.Generator) -> Digit:
    """A zigzag two pixels high and four long a segment, about a straight line from column 2 to column 25."""
    levels = _levels(digit)
    corners = _zigzag_corners(rng)
    for start, end in pairwise(corners):
        levels = np.minimum(levels + _line(start, end), 1)
    return _digit(levels)


def canny_edges(digit: Digit) -> Digit:
    """The outlines alone, one pixel wide: Canny's detector with sigma 1 and thresholds 0.1 and 0.2."""
    return np.where(canny(_levels(digit)), 255, 0).astype(np.uint8)  # type: ignore[no-untyped-call]


CORRUPTIONS: dict[str, Corruption] = {
    "shot noise": shot_noise,
    "impulse noise": impulse_noise,
    "glass blur": glass_blur,
    "motion blur": motion_blur,
    "shear": shear,
    "scale": lambda digit, rng: scale(digit),
    "rotate": rotate,
    "brightness": lambda digit, rng: brightness(digit),
    "translate": translate,
    "stripe": lambda digit, rng: stripe(digit),
    "fog": fog,
    "spatter": spatter,
    "dotted line": dotted_line,
    "zigzag": zigzag,
    "canny edges": lambda digit, rng: canny_edges(digit),
}


def _levels(digit: Digit) -> Levels:
    return digit / 255


def _digit(levels: npt.NDArray[np.float64]) -> Digit:
    return np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)


def _side(rng: np.random.Generator) -> int:
    return int(rng.integers(2)) * 2 - 1


def _blurred(levels: Levels, sigma: float) -> Levels:
    blurred: Levels = ndimage.gaussian_filter(levels, sigma, mode="nearest")
    return blurred


def _shuffled(levels: Levels, rng: np.random.Generator, rounds: int) -> Levels:
    """Swap every other pixel with one above, to the left or both, or with itself; the last ones first."""
    pixels = levels.ravel().tolist()
    inner = range(SIDE - 1, 1, -1)
    for _ in range(rounds):
        moves = rng.integers(0, 8, len(inner) ** 2)  # half of them none; the other four by 0 or 1 up, 0 or 1 left
        partners = np.where(moves < 4, 0, moves // 2 % 2 * SIDE + moves % 2).tolist()
        indices = (row * SIDE + column for row in inner for column in inner)
        for here, back in zip(indices, partners, strict=True):
            pixels[here], pixels[here - back] = pixels[here - back], pixels[here]
    return np.array(pixels).reshape(SIDE, SIDE)


def _warped(digit: Digit, matrix: list[list[float]]) -> Digit:
    """The affine map `matrix` of (row, column) about the middle, bilinear, black outside."""
    linear = np.array(matrix)
    middle = np.full(2, MIDDLE)
    return _digit(ndimage.affine_transform(_levels(digit), linear, middle - linear @ middle, order=1))


def _plasma(rng: np.random.Generator) -> Heights:
    """A height map (FOG_SIDE, FOG_SIDE) of 0 to 1 by diamond and square on a torus.

    Each halving of the step divides the random part by 1.4 twice: the published amplitude is a square.
    """
    heights = np.zeros((FOG_SIDE, FOG_SIDE), np.float32)
    step, amplitude = FOG_SIDE, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        beside = corners + np.roll(corners, -1, 1)
        heights[half::step, half::step] = _swayed(beside + np.roll(beside, -1, 0), amplitude, rng)
        middles = heights[half::step, half::step]
        above_and_below = middles + np.roll(middles, 1, 0)
        heights[::step, half::step] = _swayed(above_and_below + beside, amplitude, rng)
        left_and_right = middles + np.roll(middles, 1, 1)
        heights[half::step, ::step] = _swayed(left_and_right + corners + np.roll(corners, -1, 0), amplitude, rng)
        step, amplitude = half, amplitude / 1.4
    lowest, highest = float(heights.min()), float(heights.max())
    return (heights - lowest) / (highest - lowest)


def _swayed(sums: Heights, amplitude: float, rng: np.random.Generator) -> Heights:
    sway = rng.random(sums.shape, np.float32) * 2 - 1
    return sums / 4 + sway * np.float32(amplitude**2)


def _line(start: tuple[float, float], end: tuple[float, float]) -> Levels:
    """The ink of a line between two (column, row), the first to the left: 1 in its middle, fading up and down."""
    (left, top), (right, bottom) = start, end
    columns = np.arange(SIDE)
    middle = top + (columns - left) * (bottom - top) / (right - left)
    distance = np.minimum(np.abs(columns[:, None] - middle), LINE_FADES - 1e-10)
    ink: Levels = np.maximum(np.log(1 - distance / LINE_FADES) + 1, 0)
    ink[:, (columns < math.floor(left)) | (columns >= math.ceil(right))] = 0
    return ink


def _zigzag_corners(rng: np.random.Generator) -> list[tuple[float, float]]:
    """(column, row) of its start, its six corners and its end."""
    rise = int(rng.integers(-5, 5))
    length = math.hypot(23, rise)
    flat = [(0.0, 0.0), *((4.0 * i + 2, 2.0 * (-1) ** i) for i in range(6)), (length, -1 / (length - 20))]
    cosine, sine = 23 / length, rise / length
    row = int(rng.integers(0, 27))
    return [(2 + cosine * x - sine * y, row + sine * x + cosine * y) for x, y in flat]
