"""Shapes that are no digit, as strokes: handwritten letters, and two families of shapes.

All within -1..1, x to the right and y down. No shape is a ring or a single line: those are a zero and a one.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from training.digits.drawing import Points, Stroke, by_hand, pick

Shape: TypeAlias = Callable[[np.random.Generator], list[Stroke]]

# Pen paths on a grid of five columns a-e and five rows 1-5, the first on top; a slash lifts the pen.
HANDWRITTEN = (
    *("a5 c1 e5 / b3 d3", "e1 a1 a5 e5 / a3 d3", "e1 a1 a5 / a3 d3", "a1 a5 / e1 e5 / a3 e3", "a1 a5 / e1 a3 e5"),
    *("a1 a5 e5", "a5 a1 c4 e1 e5", "a5 a1 e5 e1", "a5 a1 d1 e2 d3 a3", "a5 a1 d1 e2 d3 a3 e5", "a1 e1 / c1 c5"),
    *("a1 a4 b5 d5 e4 e1", "a1 c5 e1", "a1 b5 c2 d5 e1", "a1 e5 / e1 a5", "a1 c3 e1 / c3 c5", "e1 c1 a2 a4 c5 e5"),
    *("b1 e1 / d1 d4 c5 a5 a4", "e1 e5 / e3 c3 a4 c5 e5", "a1 a5 / a4 c3 e4 e5", "a1 a5 / d3 a4 e5"),
    *("a3 a5 / a4 b3 c4 c5 / c4 d3 e4 e5", "a3 a5 / a4 c3 e4 e5", "a2 a5 / a2 d2 e3 d4 a4"),
    *("c1 c4 d5 e5 / a2 e2", "e1 d1 c2 c5 / a3 e3", "a3 e3 e2 c1 a2 a4 c5 e5", "a1 e1 / b1 b5 / d1 d5"),
    *("e1 a1 c3 a5 e5", "e1 a1 a5", "a1 a2 c4 e2 e1 / c1 c5", "a1 e5 / e1 a5 / c1 c5"),
    *("a1 a5 e1 e5", "a1 a5 e5 e1 / c1 c5", "b1 b5 / d1 d5 / a2 e2 / a4 e4", "a2 e2 / a4 e4", "c1 c5 / a3 e3"),
    *("a1 e1 e5 a5 a1 / c1 c5 / a3 e3", "c1 c5 / a2 e2 / c2 a5 / c2 e5", "a2 e2 / c1 c2 a5 / c2 e5"),
)


def handwritten(rng: np.random.Generator) -> list[Stroke]:
    """A letter or sign of a random alphabet, as written by hand."""
    narrow = (rng.uniform(0.5, 1), 1)
    strokes = []
    for line in pick(HANDWRITTEN, rng).split("/"):
        path = np.array([((ord(square[0]) - ord("c")) / 2, (int(square[1]) - 3) / 2) for square in line.split()])
        strokes.append(Stroke(by_hand(path, rng) * narrow))
    return strokes


def glyph(rng: np.random.Generator) -> list[Stroke]:
    """Random lines, arcs and outlines: three strokes or more, or a closed outline, filled or with some inside."""
    inside = [_random_stroke(rng) for _ in range(int(rng.integers(3, 7)))]
    if rng.random() < 0.4:
        return inside
    outline = Stroke(_outline(rng), filled=bool(rng.random() < 0.4))
    return [outline] if outline.filled else [outline, *(Stroke(each.points * 0.6) for each in inside[:3])]


def _random_stroke(rng: np.random.Generator) -> Stroke:
    if rng.random() < 0.5:
        return Stroke(by_hand(rng.uniform(-1, 1, (rng.integers(2, 4), 2)), rng))
    angles = rng.uniform(0, math.tau) + np.linspace(0, rng.uniform(1, 5), 16)
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1) * rng.uniform(0.2, 0.7, 2)
    return Stroke(arc + rng.uniform(-0.5, 0.5, 2))


def _outline(rng: np.random.Generator) -> Points:
    """A closed outline of four to nine corners or waves at random distances from the middle."""
    count = int(rng.integers(4, 10))
    reach = rng.uniform(0.35, 1, count)
    steps = np.linspace(0, count, 48 if rng.random() < 0.5 else count + 1)
    far = np.interp(steps, np.arange(count + 1), [*reach, reach[0]])
    outline: Points = ring(len(steps) - 1) * far[:, None]
    return outline


def ring(corners: int) -> Points:
    """A regular polygon in the unit circle, its first corner repeated so that it closes."""
    angles = np.linspace(0, math.tau, corners + 1)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _spokes(count: int) -> list[Stroke]:
    return [Stroke(np.stack([corner * 0, corner])) for corner in ring(count)[:-1]]


def _polygon(rng: np.random.Generator) -> list[Stroke]:
    """Outlined, with at most five corners: a circle would be a zero; filled, with up to eight."""
    filled = bool(rng.integers(2))
    return [Stroke(ring(int(rng.integers(3, 9 if filled else 6))) * (1, rng.uniform(0.7, 1)), filled)]


def _target(rng: np.random.Generator) -> list[Stroke]:
    """A ring around a dot, a ring or a cross."""
    inner = ring(24) * rng.uniform(0.3, 0.6)
    return [Stroke(ring(24)), *pick(([Stroke(inner, filled=True)], [Stroke(inner)], _spokes(4)), rng)]


def _star(rng: np.random.Generator) -> list[Stroke]:
    points = ring(2 * int(rng.integers(4, 8)))
    points[1::2] *= rng.uniform(0.3, 0.6)
    return [Stroke(points, filled=bool(rng.integers(2)))]


def _arrow(rng: np.random.Generator) -> list[Stroke]:
    head = rng.uniform(0.3, 0.6)
    tip = np.array([(1 - head, -head), (1, 0), (1 - head, head)])
    heads = [Stroke(tip, filled=bool(rng.integers(2))), Stroke(-tip)]
    return [Stroke(np.array([(-1, 0), (0.9, 0)])), *heads[: rng.integers(1, 3)]]


def _grid(rng: np.random.Generator) -> list[Stroke]:
    ticks = np.linspace(-1, 1, int(rng.integers(3, 6)))
    upright = [np.array([(x, -1), (x, 1)]) for x in ticks]
    return [Stroke(line) for line in (*upright, *(line[:, ::-1] for line in upright))]


def _house(rng: np.random.Generator) -> list[Stroke]:
    eaves = rng.uniform(-0.4, 0.1)
    walls = np.array([(-0.8, 1), (-0.8, eaves), (0, -1), (0.8, eaves), (0.8, 1), (-0.8, 1)])
    return [Stroke(walls), Stroke(np.array([(-0.8, eaves), (0.8, eaves)])), Stroke(np.array([(0, 1), (0, 0.5)]))]


def _spiral(rng: np.random.Generator) -> list[Stroke]:
    """A spiral of more turns than a 6 or a 9 has."""
    t = np.linspace(0.1, 1, 90)
    angle = t * math.tau * rng.uniform(2.5, 4)
    return [Stroke(np.stack([t * np.cos(angle), t * np.sin(angle)], axis=1))]


def _moon(rng: np.random.Generator) -> list[Stroke]:
    outer = np.linspace(0.25, 0.75, 20) * math.tau
    inner = outer[::-1]
    bulge = rng.uniform(0.1, 0.4)
    x = np.concatenate([np.cos(outer), np.cos(inner) * bulge])
    return [Stroke(np.stack([x + 0.7, np.sin(np.concatenate([outer, inner]))], axis=1), filled=True)]


def _waves(rng: np.random.Generator) -> list[Stroke]:
    x = np.linspace(-1, 1, 80)
    y = 0.2 * np.sin(x * math.pi * rng.uniform(2.5, 5))
    return [Stroke(np.stack([x, y + level], axis=1)) for level in (-0.6, 0, 0.6)]


def _ladder(rng: np.random.Generator) -> list[Stroke]:
    half = rng.uniform(0.35, 0.6)
    rungs = [np.array([(-half, y), (half, y)]) for y in np.linspace(-0.8, 0.8, int(rng.integers(3, 6)))]
    return [Stroke(line) for line in (np.array([(-half, -1), (-half, 1)]), np.array([(half, -1), (half, 1)]), *rungs)]


def _face(rng: np.random.Generator) -> list[Stroke]:
    angles = np.linspace(0.1, 0.4, 12) * math.tau
    mouth = np.stack([np.cos(angles), np.sin(angles)], axis=1) * 0.55
    eye = ring(12) * rng.uniform(0.1, 0.2)
    eyes = [Stroke(np.add(eye, (x, -0.3)), filled=True) for x in (-0.35, 0.35)]
    return [Stroke(ring(30)), *eyes, Stroke(mouth)]


_T = np.linspace(0, math.tau, 40)
_HEART = np.stack([np.sin(_T) ** 3, -0.8 * np.cos(_T) + 0.35 * np.cos(2 * _T) + 0.15 * np.cos(3 * _T)], axis=1)
_ENVELOPE = (np.array([(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]), np.array([(-1, -1), (0, 0.2), (1, -1)]))
_HOURGLASS = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)])  # filled: outlined it would be an angular 8
_FIR = [  # its branches: top and half their width
    Stroke(np.array([(0, top - 0.3), (wide, top + 0.5), (-wide, top + 0.5)]), filled=True)
    for top, wide in ((-0.7, 0.5), (-0.3, 0.7), (0.2, 0.9))
]

TRAINING_SHAPES: dict[str, Shape] = {
    "polygon": _polygon,
    "disc": lambda rng: [Stroke(ring(24) * (1, rng.uniform(0.7, 1)), filled=True)],
    "target": _target,
    "star": _star,
    "arrow": _arrow,
    "scribble": lambda rng: [Stroke(by_hand(rng.uniform(-1, 1, (rng.integers(9, 30), 2)), rng))],
    "grid": _grid,
    "cross": lambda rng: _spokes(int(rng.integers(3, 9))),
}
BENCHMARK_SHAPES: dict[str, Shape] = {
    "heart": lambda rng: [Stroke(_HEART, filled=bool(rng.integers(2)))],
    "house": _house,
    "spiral": _spiral,
    "envelope": lambda rng: [Stroke(line * height) for height in [(1, rng.uniform(0.5, 0.9))] for line in _ENVELOPE],
    "moon": _moon,
    "waves": _waves,
    "ladder": _ladder,
    "tree": lambda rng: [*_FIR, Stroke(np.array([(0, 0.6), (0, rng.uniform(0.8, 1))]))],
    "hourglass": lambda rng: [Stroke(_HOURGLASS * (rng.uniform(0.6, 1), 1), filled=True)],
    "face": _face,
}
