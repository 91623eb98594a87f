"""Rendering of strokes and printed characters at any size and angle, and of the paper around them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, TypeVar

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

CANVAS = (28, 200)  # pixels a side, smallest and largest
UNSTEADY = 0.07  # standard deviation of hand-drawn points, for shapes within -1..1
FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"  # the same on every machine: matplotlib brings them

Option = TypeVar("Option")
Grey: TypeAlias = npt.NDArray[np.uint8]
Points: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Stroke:
    """One movement of a pen through `points` (N, 2), x to the right and y down, within -1..1; maybe a filled area."""

    points: Points
    filled: bool = False


@dataclass(frozen=True)
class Pose:
    """Position, size and angle of a shape on a square canvas: lengths in pixels, `turn` in radians."""

    side: int
    reach: float  # half the shape's extent
    centre: tuple[float, float]
    turn: float


def pick(options: Sequence[Option], rng: np.random.Generator) -> Option:
    """One of the options, uniformly at random."""
    return options[int(rng.integers(len(options)))]


def canvas_side(rng: np.random.Generator) -> int:
    """A random length in CANVAS, log-uniform."""
    return int(np.exp(rng.uniform(*np.log(CANVAS))))


def random_pose(rng: np.random.Generator, turn: float) -> Pose:
    """A random pose on a canvas of random size, rotated by up to `turn` radians either way."""
    side = canvas_side(rng)
    reach = side * rng.uniform(0.15, 0.4)
    margin = 1.2 * reach  # for corners, which reach farther than sides
    x, y = rng.uniform(margin, side - margin, 2)
    return Pose(side, reach, (x, y), rng.uniform(-turn, turn))


def transformed(points: Points, pose: Pose) -> Points:
    """A shape's points (N, 2), within -1..1, in pixels of the canvas."""
    cosine, sine = math.cos(pose.turn), math.sin(pose.turn)
    turned: Points = points @ np.array([[cosine, sine], [-sine, cosine]])
    return turned * pose.reach + pose.centre


def render_strokes(strokes: Sequence[Stroke], pose: Pose, width: float) -> Grey:
    """The strokes' ink (side, side), 0 for none and 255 for full; `width` is a share of the shape's reach."""
    scale = 2  # drawn larger and averaged, for smooth edges
    image = Image.new("L", (pose.side * scale, pose.side * scale))
    pen = ImageDraw.Draw(image)
    pixels = max(round(width * pose.reach * scale), scale)
    for stroke in strokes:
        points = [(x, y) for x, y in (transformed(stroke.points, pose) * scale).tolist()]
        if stroke.filled:
            pen.polygon(points, fill=255)
        else:
            pen.line(points, fill=255, width=pixels, joint="curve")
    return np.asarray(image.reduce(scale))


def render_character(character: str, font: ImageFont.FreeTypeFont, pose: Pose, bold: float) -> Grey:
    """A character's ink (side, side), 0 for none and 255 for full; `bold` thickens it, as a share of its reach."""
    image = Image.new("L", (pose.side, pose.side))
    stroke = round(bold * pose.reach)
    ImageDraw.Draw(image).text(pose.centre, character, 255, font, anchor="mm", stroke_width=stroke)
    return np.asarray(image.rotate(math.degrees(pose.turn), Image.Resampling.BILINEAR, center=pose.centre))


@lru_cache(maxsize=1024)
def font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's fonts by its file's stem, or Pillow's own by the name `pillow`."""
    if name != "pillow":
        return ImageFont.truetype(FONTS / f"{name}.ttf", pixels)
    own = ImageFont.load_default(pixels)
    assert isinstance(own, ImageFont.FreeTypeFont)  # Pillow without FreeType has no sizes
    return own


def by_hand(points: Points, rng: np.random.Generator) -> Points:
    """The points (N, 2) as drawn by hand: with jitter (UNSTEADY) and maybe rounded corners.

    They are cut at a quarter of their sides (Chaikin 1974), the ends kept.
    """
    points = points + rng.normal(0, UNSTEADY, points.shape)
    for _ in range(rng.integers(3)):
        before, after = points[:-1], points[1:]
        cut = np.stack([0.75 * before + 0.25 * after, 0.25 * before + 0.75 * after], axis=1).reshape(-1, 2)
        points = np.concatenate([points[:1], cut, points[-1:]])
    return points


def on_paper(ink: Grey, rng: np.random.Generator) -> Grey:
    """Ink (H, W) on paper (H, W): dark on light or light on dark, of random contrast, with or without noise."""
    paper, pen = rng.permutation([rng.integers(0, 96), rng.integers(160, 256)]) if rng.random() < 0.5 else (0, 255)
    seen = paper + ink * ((pen - paper) / 255)
    return grained(seen, rng.uniform(0, 12), rng) if rng.random() < 0.5 else seen.astype(np.uint8)


def grained(seen: npt.NDArray[np.floating], deviation: float, rng: np.random.Generator) -> Grey:
    """Grey levels (H, W) of 0..255 with Gaussian noise of that standard deviation."""
    noise = rng.standard_normal(seen.shape, np.float32) * np.float32(deviation)
    return np.clip(seen + noise, 0, 255).astype(np.uint8)
