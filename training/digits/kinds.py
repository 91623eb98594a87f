"""Digits as they are written, printed, scanned and photographed: one composer for each kind of image.

A composer draws one MNIST digit (28, 28), or its label in a typeface of its own, with the defects of its kind, and
returns grey levels (H, W) or RGB (H, W, 3). Training and the benchmark use the same composers with other digits and
other seeds.
"""

import math
from collections.abc import Callable
from typing import Final, TypeAlias

import cv2
import numpy as np

from training.digits.composing import (
    Ink,
    Pixels,
    Rng,
    drawn_digit,
    enlarged,
    gradient,
    ink_box,
    inked,
    levels,
    lit,
    on_canvas,
    pair,
    photographed_paper,
    plain,
    skeleton_points,
    smooth_noise,
    stroke_width,
    with_line,
)

Compose: TypeAlias = Callable[[Pixels, int, Rng], Pixels]  # a digit (28, 28), its label
ComposeTwo: TypeAlias = Callable[[Pixels, Pixels, Rng], Pixels]  # two digits, of which the second may not be used

DOTS: Final = (  # 5 x 7 dot matrices, a row a number of five bits
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)
SEGMENTS: Final = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
OTHER_SEGMENTS: Final = {6: "fgedc", 7: "abcf", 9: "abcfg"}  # as some displays show them
_BARS: Final = {  # the ends of each segment, x and y in a box of 1 x 2
    "a": ((0, 0), (1, 0)),
    "b": ((1, 0), (1, 1)),
    "c": ((1, 1), (1, 2)),
    "d": ((0, 2), (1, 2)),
    "e": ((0, 1), (0, 2)),
    "f": ((0, 0), (0, 1)),
    "g": ((0, 1), (1, 1)),
}


def shadow_edge(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """The edge of a shadow, of 45 to 75 % of the light, across the digit."""
    ink = drawn_digit(digit, rng)
    paper = photographed_paper(ink.shape, rng)
    left, top, right, bottom = ink_box(ink)
    slope = gradient(ink.shape, rng.uniform(0, math.tau))
    edge = slope[int(rng.uniform(top, bottom)), int(rng.uniform(left, right))]
    lit = 1 / (1 + np.exp(-np.clip((slope - edge) / rng.uniform(0.005, 0.12), -50, 50)))
    shade = rng.uniform(0.45, 0.75)
    page = paper * (1 - ink) + rng.uniform(15, 60) * ink
    return levels(page * (shade + (1 - shade) * lit))


def thick_frame(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """A rectangle around the digit, as thick as its strokes or thicker."""
    ink = drawn_digit(digit, rng, (0.6, 1.1))
    return plain(_framed(ink, rng, stroke_width(ink) * rng.uniform(0.7, 1.6)), rng)


def thin_frame(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """A thin rectangle around the digit, such as a form's field."""
    ink = drawn_digit(digit, rng, (0.6, 1.1))
    return plain(_framed(ink, rng, max(stroke_width(ink) * rng.uniform(0.1, 0.4), 1)), rng)


def _framed(ink: Ink, rng: Rng, width: float) -> Ink:
    left, top, right, bottom = ink_box(ink)
    side = max(right - left, bottom - top)
    gaps = [side * rng.uniform(0.12, 0.4) + width for _ in range(4)]
    x0, y0, x1, y1 = left - gaps[0], top - gaps[1], right + gaps[2], bottom + gaps[3]
    return with_line(ink, [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0), (x1, y0)], width)


def ring(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """A circle drawn around the digit."""
    ink = drawn_digit(digit, rng, (0.7, 1.1))
    left, top, right, bottom = ink_box(ink)
    reach = np.array([right - left, bottom - top]) / 2
    reach = np.maximum(reach, 0.6 * reach.max()) * rng.uniform(1.4, 1.8)
    angles = np.linspace(0, math.tau * rng.uniform(0.97, 1.05), 60) + rng.uniform(0, math.tau)
    wobble = 1 + 0.04 * np.sin(2 * angles + rng.uniform(0, 6))
    x = (left + right) / 2 + reach[0] * wobble * np.cos(angles)
    y = (top + bottom) / 2 + reach[1] * wobble * np.sin(angles)
    ends = list(zip(x.tolist(), y.tolist(), strict=True))
    return plain(with_line(ink, ends, max(stroke_width(ink) * rng.uniform(0.3, 1.1), 1)), rng)


def underline(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """One line or two under the digit."""
    ink = drawn_digit(digit, rng, (0.4, 0.9))
    left, top, right, bottom = ink_box(ink)
    side, width = max(right - left, bottom - top), max(stroke_width(ink) * rng.uniform(0.3, 1), 1)
    y = bottom + side * rng.uniform(0.06, 0.2) + width / 2
    x0, x1 = left - side * rng.uniform(-0.05, 0.25), right + side * rng.uniform(-0.05, 0.25)
    slant = side * rng.uniform(-0.03, 0.03)
    for _ in range(int(rng.integers(1, 3))):
        ink = with_line(ink, [(x0, y), (x1, y + slant)], width)
        y += width + side * rng.uniform(0.05, 0.1)
    return plain(ink, rng)


def gaps(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """Strokes with gaps at even distances: a dry pen, a stencil, a tracing sheet."""
    ink = drawn_digit(digit, rng)
    width = stroke_width(ink)
    layer = np.zeros(ink.shape, np.uint8)
    reach = width * rng.uniform(0.55, 0.7)
    for x, y in skeleton_points(ink, width * rng.uniform(2.2, 3.6), rng):
        cv2.circle(layer, (round(x * 8), round(y * 8)), round(reach * 8), 255, -1, cv2.LINE_AA, 3)
    return plain(ink * (1 - layer.astype(np.float32) / 255), rng)


def dots(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """The strokes' middle lines as dots that do not touch."""
    ink = drawn_digit(digit, rng)
    spacing = stroke_width(ink) * rng.uniform(0.9, 1.4)
    dotted = np.zeros(ink.shape, np.uint8)
    for x, y in skeleton_points(ink, spacing, rng):
        cv2.circle(dotted, (round(x * 8), round(y * 8)), round(spacing * 8 * rng.uniform(0.3, 0.4)), 255, -1, 16, 3)
    return plain(dotted.astype(np.float32) / 255, rng)


def dot_matrix(_digit: Pixels, label: int, rng: Rng) -> Pixels:
    """A 5 x 7 dot matrix of a receipt or an LED board, its dots apart."""
    pitch = rng.uniform(10, 34)
    reach = pitch * rng.uniform(0.28, 0.47)
    layer = np.zeros((round(6 * pitch + 2 * reach) + 2, round(4 * pitch + 2 * reach) + 2), np.uint8)
    for row, bits in enumerate(DOTS[label]):
        for column in range(5):
            if bits >> (4 - column) & 1:
                middle = (round((reach + 1 + column * pitch) * 8), round((reach + 1 + row * pitch) * 8))
                cv2.circle(layer, middle, round(reach * 8), 255, -1, cv2.LINE_AA, 3)
    ink = on_canvas(layer.astype(np.float32) / 255, rng)
    return lit(ink, rng) if rng.random() < 0.5 else plain(ink, rng)


def slashed_zero(digit: Pixels, label: int, rng: Rng) -> Pixels:
    """A zero with a stroke from the lower left to the upper right; other labels are drawn plain."""
    ink = drawn_digit(digit, rng, (0.35, 0.9))
    if label == 0:
        left, top, right, bottom = ink_box(ink)
        height = bottom - top
        beyond, inset = height * rng.uniform(-0.12, 0.12), (right - left) * rng.uniform(-0.05, 0.25)
        ends = [(left + inset, bottom + beyond), (right - inset, top - beyond)]
        ink = with_line(ink, ends, max(stroke_width(ink) * rng.uniform(0.5, 1.1), 1))
    return plain(ink, rng)


def seven_segment(_digit: Pixels, label: int, rng: Rng) -> Pixels:
    """A seven-segment display, LCD or LED, its segments apart, upright or slanted."""
    height, slant = rng.uniform(60, 200), rng.uniform(0, 0.15)
    half, width = height / 2, height * rng.uniform(0.08, 0.15)
    apart = width * rng.uniform(0.5, 0.75) / half
    length = half * rng.uniform(0.95, 1.15) + slant * height
    layer: Ink = np.zeros((round(height + 2 * width), round(length + 3 * width)), np.float32)
    across = layer.shape[1] - 3 * width - slant * height
    for name in OTHER_SEGMENTS.get(label, SEGMENTS[label]) if rng.random() < 0.25 else SEGMENTS[label]:
        (x0, y0), (x1, y1) = _BARS[name]
        cut_x, cut_y = (apart * half / across if x0 != x1 else 0), (apart if y0 != y1 else 0)
        ends = [(x0 + cut_x, y0 + cut_y), (x1 - cut_x, y1 - cut_y)]
        ends = [(width + x * across + slant * half * (2 - y), width + y * half) for x, y in ends]
        layer = with_line(layer, ends, width * rng.uniform(0.75, 0.85))
    ink = on_canvas(layer, rng)
    return lit(ink, rng) if rng.random() < 0.5 else plain(ink * np.float32(rng.uniform(0.7, 1)), rng)


def chalk(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """Chalk on a blackboard: light strokes with holes, smears on the board."""
    ink = drawn_digit(digit, rng)
    rough = smooth_noise(ink.shape, rng.uniform(1.2, 2.5), rng) + rng.standard_normal(ink.shape).astype(np.float32)
    kept = ink * np.clip(0.75 + 0.35 * rough, 0.1, 1)
    smear = np.clip(smooth_noise(ink.shape, max(ink.shape) / 5, rng), 0, 3) * rng.uniform(2, 9)
    board = rng.uniform(25, 70) + smear + rng.normal(0, rng.uniform(1, 5), ink.shape)
    return inked(np.asarray(board, np.float32), np.asarray(kept, np.float32), rng.uniform(170, 240))


def touching_edge(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """An image cut so tightly that the ink touches one to four of its edges."""
    ink = enlarged(digit, rng.uniform(20, 200))
    free = rng.permutation(4) < rng.integers(0, 4)
    margins = [round(max(ink.shape) * rng.uniform(0.05, 0.4)) * int(each) for each in free]
    return plain(np.pad(ink, (margins[:2], margins[2:])), rng)


def bitmap(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """The digit's box as a bitmap of 16 x 16, in grey as USPS's or in black and white as Semeion's."""
    rows, columns = np.flatnonzero(digit.max(1) > 40), np.flatnonzero(digit.max(0) > 40)
    cut = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = 16 / max(cut.shape)
    size = (max(round(cut.shape[1] * scale), 2), max(round(cut.shape[0] * scale), 2))
    small = cv2.resize(cut, size, interpolation=cv2.INTER_AREA)
    across, down = 16 - small.shape[1], 16 - small.shape[0]
    small = np.pad(small, ((down // 2, down - down // 2), (across // 2, across - across // 2)))
    if rng.random() < 0.5:
        small = np.where(small > 110, 255, 0)
    return np.asarray(255 - small if rng.random() < 0.3 else small, np.uint8)


def small_on_page(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """A digit of 8 to 12 mm somewhere on a scanned A4 page of 100 to 200 dpi."""
    dpi = rng.uniform(100, 200)
    ink = enlarged(digit, rng.uniform(8, 12) / 25.4 * dpi)
    width, height = round(8.27 * dpi), round(11.69 * dpi)
    page = np.zeros((height, width), np.float32)
    top, left = (
        int(rng.uniform(0.05 * whole, 0.95 * whole - part)) for whole, part in zip(page.shape, ink.shape, strict=True)
    )
    page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    noise = rng.normal(0, rng.uniform(0, 2.5), page.shape).astype(np.float32)
    return inked(np.float32(rng.uniform(225, 255)) + noise, page, rng.uniform(0, 90))


def wood(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """Dark ink, or white paint, on grained wood."""
    ink = drawn_digit(digit, rng)
    height, width = ink.shape
    across = rng.random() < 0.5
    lines = smooth_noise((height, max(width // 30, 2)) if across else (max(height // 30, 2), width), 2.5, rng)
    grain = cv2.resize(lines, (width, height), interpolation=cv2.INTER_CUBIC)
    waves = np.sin(
        gradient(ink.shape, math.pi / 2 if across else 0) * rng.uniform(10, 40) + smooth_noise(ink.shape, 90, rng)
    )
    board = rng.uniform(115, 175) + rng.uniform(4, 11) * grain + rng.uniform(2, 9) * waves
    board = board + rng.normal(0, 3, ink.shape)
    return inked(
        np.asarray(board, np.float32), ink, rng.uniform(10, 45) if rng.random() < 0.7 else rng.uniform(235, 255)
    )


def paper_grain(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """Ink or pencil on rough, clouded paper."""
    ink = drawn_digit(digit, rng)
    clouds = rng.uniform(2, 10) * smooth_noise(ink.shape, rng.uniform(2, 6), rng)
    clouds = clouds + rng.uniform(2, 10) * smooth_noise(ink.shape, max(ink.shape) / 4, rng)
    paper = rng.uniform(180, 225) + clouds + rng.normal(0, rng.uniform(2, 6), ink.shape)
    rough = np.clip(0.85 + 0.2 * smooth_noise(ink.shape, 2, rng), 0.4, 1)
    return inked(np.asarray(paper, np.float32), np.asarray(ink * rough, np.float32), rng.uniform(20, 80))


def screen(digit: Pixels, _label: int, rng: Rng) -> Pixels:
    """A photograph of a screen: the grid of its pixels and the moire of both grids."""
    ink = cv2.GaussianBlur(drawn_digit(digit, rng), (0, 0), 0.8)
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]].astype(np.float32)
    angle, period = rng.uniform(-0.1, 0.1), rng.uniform(2.2, 5)
    grid = np.sin((x + angle * y) * math.tau / period) + np.sin((y - angle * x) * math.tau / period)
    moire = np.sin((x * rng.uniform(-1, 1) + y) * math.tau / rng.uniform(15, 60))
    back, pen = rng.uniform(190, 245), rng.uniform(10, 50)
    if rng.random() < 0.4:
        back, pen = pen, back
    light = (back * (1 - ink) + pen * ink) * (1 + rng.uniform(0.01, 0.07) * grid + rng.uniform(0, 0.06) * moire)
    light = light * (1 - rng.uniform(0, 0.2) * gradient(ink.shape, rng.uniform(0, math.tau)) / 2)
    return levels(light + rng.normal(0, 2, ink.shape))


def crossed_out(digit: Pixels, _other: Pixels, rng: Rng) -> Pixels:
    """A digit crossed out by two to six strokes."""
    ink = drawn_digit(digit, rng, (0.4, 0.9))
    left, top, right, bottom = ink_box(ink)
    side, width = max(right - left, bottom - top), stroke_width(ink) * rng.uniform(0.6, 1.1)
    middle, turn = ((left + right) / 2, (top + bottom) / 2), rng.uniform(0, math.pi)
    for index in range(int(rng.integers(2, 7))):
        angle = turn + (index % 2) * rng.uniform(0.9, 1.6) + rng.uniform(-0.2, 0.2)
        reach = side * rng.uniform(0.5, 0.75)
        x, y = (each + side * rng.uniform(-0.15, 0.15) for each in middle)
        step = (reach * math.cos(angle), reach * math.sin(angle))
        ink = with_line(ink, [(x - step[0], y - step[1]), (x + step[0], y + step[1])], width)
    return plain(ink, rng)


def garbled(digit: Pixels, _other: Pixels, rng: Rng) -> Pixels:
    """The quarters of a digit shuffled and turned, or the digit scribbled over."""
    ink = enlarged(digit, rng.uniform(60, 200))
    if rng.random() < 0.5:
        side = 2 * (max(ink.shape) // 2)
        square = np.asarray(cv2.resize(ink, (side, side)), np.float32)
        half = side // 2
        parts = [square[y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
        a, b, c, d = (np.rot90(parts[index], int(rng.integers(1, 4))) for index in rng.permutation(4))
        return plain(on_canvas(np.block([[a, b], [c, d]]), rng), rng)
    ink = on_canvas(ink, rng, (0.3, 0.8))
    left, top, right, bottom = ink_box(ink)
    points = rng.uniform((left, top), (right, bottom), (int(rng.integers(8, 16)), 2))
    return plain(
        with_line(ink, [(float(x), float(y)) for x, y in points], stroke_width(ink) * rng.uniform(0.5, 1)), rng
    )


def two_digits(digit: Pixels, other: Pixels, rng: Rng) -> Pixels:
    """Two digits side by side, apart."""
    return plain(on_canvas(pair(digit, other, rng, (0.12, 0.5)), rng, (0.2, 0.5)), rng)


def touching_digits(digit: Pixels, other: Pixels, rng: Rng) -> Pixels:
    """Two digits side by side that touch or overlap a little."""
    return plain(on_canvas(pair(digit, other, rng, (-0.15, -0.03)), rng, (0.2, 0.5)), rng)


DIGIT_KINDS: Final[dict[str, Compose]] = {  # images that show one digit
    "shadow edge": shadow_edge,
    "thick frame": thick_frame,
    "thin frame": thin_frame,
    "ring": ring,
    "underline": underline,
    "gaps": gaps,
    "dots": dots,
    "dot matrix": dot_matrix,
    "slashed zero": slashed_zero,
    "seven segment": seven_segment,
    "chalk": chalk,
    "touching the edge": touching_edge,
    "16 x 16 bitmap": bitmap,
    "small on a page": small_on_page,
    "wood": wood,
    "paper grain": paper_grain,
    "screen": screen,
}
DOUBTFUL_KINDS: Final[dict[str, ComposeTwo]] = {  # images whose digit should be rejected, or answered with doubt
    "crossed out": crossed_out,
    "garbled": garbled,
    "two digits": two_digits,
    "touching digits": touching_digits,
}
