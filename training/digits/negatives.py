"""Negatives: images without a digit, to train rejection with and to measure it.

The training and the benchmark negatives share no typeface, shape or noise, so that the benchmark measures
generalisation. Both leave out characters that look like a digit: O o Q (0), I l | (1). The handwritten training
negatives also leave out letters that are written like a digit (S Z b g q a B D G r y): MNIST holds a 5 written S and a
2 written Z, which a reader trained on these letters would reject. In print they differ.
"""

import math
import tarfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from skimage import data

from app.errors import CorpusError
from app.images import decoded
from training.digits.drawing import (
    Grey,
    Points,
    Pose,
    Stroke,
    canvas_side,
    font,
    grained,
    on_paper,
    pick,
    random_pose,
    render_character,
    render_strokes,
    transformed,
)
from training.digits.shapes import BENCHMARK_SHAPES, TRAINING_SHAPES, glyph, handwritten, ring

Draw: TypeAlias = Callable[[np.random.Generator], Grey]
RawImage: TypeAlias = Grey | bytes  # grey levels (H, W), or an encoded image

TILT = 0.35  # radians: more would make an N a Z, an M a 3
TRAINING_FONTS = (
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10", "DejaVuSansMono", "DejaVuSansMono-Bold"),
)
TRAINING_PRINT = "ABCDEFGHJKLMNPRSTUVWXYZabcdefghijkmnpqrstuvwxyz&?#%+*=$"
PHOTOGRAPHS = (
    *("astronaut", "brick", "camera", "cat", "clock", "coffee", "coins", "grass", "gravel", "hubble_deep_field"),
    *("immunohistochemistry", "moon", "retina", "rocket"),
)
BENCHMARK_FONTS = (
    *("pillow", "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
)
BENCHMARK_PRINT = "ABCDEFGHJKLMNPRSTUVWXYZabcdefghijkmnpqrstuvwxyz&?#%+*=@$"


def training_negative(rng: np.random.Generator, photographs: Sequence[bytes] = ()) -> Grey:
    """An image (H, W) of 28 to 200 pixels a side without a digit, of a random kind in TRAINING_NEGATIVES.

    With `photographs` (encoded images) a part of one of them is as likely as each other kind.
    """
    kinds = list(TRAINING_NEGATIVES.values())
    if photographs:
        kinds.append(lambda rng: photograph_part(decoded(pick(photographs, rng)), rng))
    return pick(kinds, rng)(rng)


def benchmark_negatives(photographs: Sequence[bytes]) -> Mapping[str, Callable[[np.random.Generator], RawImage]]:
    """Generators by kind: BENCHMARK_NEGATIVES and, if given, unchanged photographs (encoded images)."""
    if not photographs:
        return BENCHMARK_NEGATIVES
    return BENCHMARK_NEGATIVES | {"photographs": lambda rng: pick(photographs, rng)}


def photographs_in(path: Path) -> list[bytes]:
    """Return the JPEG files of a folder or a tar, encoded, by name; raise CorpusError if there are none."""
    try:
        if path.is_dir():
            found = {file.name: file.read_bytes() for file in path.glob("*.jpg")}
        else:
            with tarfile.open(path) as archive:
                opened = {each.name: archive.extractfile(each) for each in archive if each.name.endswith(".jpg")}
                found = {name: file.read() for name, file in opened.items() if file}
    except (OSError, tarfile.TarError) as error:
        raise CorpusError(f"{path}: expected a folder or a tar of photographs: {error}") from error
    if not found:
        raise CorpusError(f"{path}: expected photographs (*.jpg), found none")
    return [found[name] for name in sorted(found)]


def photograph_part(image: Image.Image, rng: np.random.Generator) -> Grey:
    """A part of a photograph in grey levels (H, W), maybe mirrored, its longer side of 28 to 200 pixels."""
    width, height = (round(length * rng.uniform(0.3, 1)) for length in image.size)
    left, top = (int(rng.integers(whole - part + 1)) for whole, part in zip(image.size, (width, height), strict=True))
    scale = canvas_side(rng) / max(width, height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    part = image.convert("L").resize(size, Image.Resampling.BILINEAR, (left, top, left + width, top + height), 3.0)
    return np.asarray(ImageOps.mirror(part) if rng.random() < 0.5 else part)


def _training_blank(rng: np.random.Generator) -> Grey:
    """Blank paper of one shade, or with a gradient of light to one side."""
    side = canvas_side(rng)
    fall = rng.uniform(0, 80) * rng.integers(2)
    shade = rng.uniform(fall, 255 - fall) + fall * _slope(side, rng.uniform(0, math.tau))
    return grained(shade, rng.uniform(0, 4) * rng.integers(2), rng)


def _benchmark_blank(rng: np.random.Generator) -> Grey:
    """Blank paper of one shade, under a lamp, or with a shadow's soft edge, and with coarse grain."""
    side = canvas_side(rng)
    light: Points
    match pick(("flat", "lamp", "shadow"), rng):
        case "flat":
            light = np.full((side, side), rng.uniform(0, 255))
        case "lamp":
            x, y = (np.linspace(-1, 1, side) - middle for middle in rng.uniform(-1, 1, 2))
            light = rng.uniform(120, 255) - rng.uniform(5, 30) * (x**2 + y[:, None] ** 2)
        case _:
            edge = np.tanh(_slope(side, rng.uniform(0, math.tau)) * rng.uniform(0.5, 3))
            light = rng.uniform(100, 200) + rng.uniform(10, 50) * edge
    grain = Image.fromarray(grained(np.full((side, side), 128.0), rng.uniform(0, 8), rng))
    coarse = np.asarray(grain.filter(ImageFilter.BoxBlur(pick((0, 1), rng))), np.float32) - 128
    return np.clip(light + coarse, 0, 255).astype(np.uint8)


def _training_noise(rng: np.random.Generator) -> Grey:
    """Uniform, normal or binary pixel noise; blurred to clouds, thresholded to blots."""
    side = canvas_side(rng)
    field = pick(_FIELDS, rng)(side, rng)
    image = Image.fromarray(field).filter(ImageFilter.GaussianBlur(pick((0, 0, 1, 2, side / 12), rng)))
    levels = _stretched(np.asarray(image, np.float32))
    if rng.random() < 0.3:
        levels = np.where(levels > 128, 255, 0).astype(np.uint8)
    return on_paper(levels, rng)


_FIELDS: tuple[Callable[[int, np.random.Generator], Grey], ...] = (  # uniform, normal, binary
    lambda side, rng: rng.integers(0, 256, (side, side), np.uint8),
    lambda side, rng: grained(np.full((side, side), 128.0), rng.uniform(10, 90), rng),
    lambda side, rng: np.where(rng.random((side, side), np.float32) < rng.uniform(0.02, 0.5), 255, 0).astype(np.uint8),
)


def _stretched(levels: npt.NDArray[np.float32]) -> Grey:
    low, high = float(levels.min()), float(levels.max())
    stretched: Grey = ((levels - low) * (255 / max(high - low, 1))).astype(np.uint8)
    return stretched


def _benchmark_noise(rng: np.random.Generator) -> Grey:
    """Poisson or Laplace noise, streaks, tiles, fractal noise, or drops."""
    side = canvas_side(rng)
    match pick(("poisson", "laplace", "streaks", "tiles", "fractal", "drops"), rng):
        case "poisson":
            mean = rng.uniform(0.5, 20)
            levels = rng.poisson(mean, (side, side)).astype(np.float64) * (128 / mean)
        case "laplace":
            levels = rng.laplace(128, rng.uniform(15, 60), (side, side))
        case "streaks":
            levels = rng.uniform(40, 215, (side, 1)) + rng.normal(0, 15, (side, side))
        case "tiles":
            return _enlarged(int(rng.integers(4, 20)), side, Image.Resampling.NEAREST, rng)
        case "fractal":
            octaves = [_enlarged(count, side, Image.Resampling.BICUBIC, rng) / share for count, share in _OCTAVES]
            return _stretched(np.sum(octaves, axis=0, dtype=np.float32))
        case _:
            return _drops(side, rng)
    return np.clip(levels, 0, 255).astype(np.uint8)


_OCTAVES = ((3, 2), (6, 3), (12, 5), (24, 9))  # knots a side, and what their heights are divided by


def _enlarged(count: int, side: int, resampling: Image.Resampling, rng: np.random.Generator) -> Grey:
    return np.asarray(Image.fromarray(rng.integers(0, 256, (count, count), np.uint8)).resize((side, side), resampling))


def _drops(side: int, rng: np.random.Generator) -> Grey:
    paper, pen = rng.permutation([rng.integers(0, 90), rng.integers(150, 256)]).tolist()
    image = Image.new("L", (side, side), paper)
    for x, y in rng.uniform(0, side, (rng.integers(10, 60), 2)).tolist():
        ImageDraw.Draw(image).circle((x, y), side * rng.uniform(0.01, 0.04), pen)
    return np.asarray(image)


def print_of(characters: str, fonts: Sequence[str], rng: np.random.Generator, *, bold: float) -> Grey:
    """One of the characters in one of the fonts, tilted, on a canvas (H, W), thickened by up to `bold` of its reach."""
    pose = random_pose(rng, TILT)
    face = font(pick(fonts, rng), round(pose.reach * 2))
    return on_paper(render_character(pick(characters, rng), face, pose, rng.uniform(0, bold)), rng)


def _drawn(strokes: Sequence[Stroke], rng: np.random.Generator, turn: float = math.pi, width: float = 0.35) -> Grey:
    """Strokes of a random width up to `width`, turned by up to `turn`, on a canvas (H, W)."""
    return on_paper(render_strokes(strokes, random_pose(rng, turn), rng.uniform(0.08, width)), rng)


def _training_scene(rng: np.random.Generator) -> Grey:
    """Overlapping objects of all sizes, as in photographs (the dead leaves model: Lee et al. 2001)."""
    side = canvas_side(rng)
    image = Image.new("L", (side, side), int(rng.integers(256)))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(10, 80))):
        reach = side * 0.04 / max(rng.random(), 0.06) ** rng.uniform(0.5, 1)  # few are large
        pose = Pose(side, reach, (rng.uniform(0, side), rng.uniform(0, side)), rng.uniform(0, math.tau))
        leaf = transformed(ring(int(rng.integers(3, 12))) * (1, rng.uniform(0.2, 1)), pose)
        pen.polygon([(x, y) for x, y in leaf.tolist()], int(rng.integers(256)))
    lit = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, side / 40))), np.float32)
    return grained(lit, rng.uniform(0, 12), rng)


@lru_cache(maxsize=1)
def library_photographs() -> list[Image.Image]:
    """The photographs bundled with scikit-image, all free of rights, in grey."""
    return [Image.fromarray(np.asarray(getattr(data, name)())).convert("L") for name in PHOTOGRAPHS]


def _training_texture(rng: np.random.Generator) -> Grey:
    """Periodic textures: straight or winding stripes, a lattice or a chessboard."""
    side = canvas_side(rng)
    turn, period = rng.uniform(0, math.tau), rng.uniform(3, 24) * math.pi
    winding = rng.uniform(0, 3) * rng.integers(2) * np.sin(_slope(side, rng.uniform(0, math.tau)) * rng.uniform(2, 9))
    along = np.sin(_slope(side, turn) * period + winding)
    athwart = np.sin(_slope(side, turn + math.pi / 2) * period)
    wave = pick((along, np.maximum(along, athwart), along * athwart), rng)
    return on_paper((127.5 + 127.5 * np.clip(wave * pick((1, 3, 20), rng), -1, 1)).astype(np.uint8), rng)


def _slope(side: int, turn: float) -> Points:
    """A gradient (side, side) from about -1 to 1 in the direction `turn`, in radians."""
    x = np.linspace(-1, 1, side)
    slope: Points = (math.cos(turn) * x + math.sin(turn) * x[:, None]) / math.sqrt(2)
    return slope


TRAINING_NEGATIVES: dict[str, Draw] = {
    "blanks": _training_blank,
    "noise": _training_noise,
    "letters": lambda rng: _drawn(handwritten(rng), rng, TILT, 0.4),
    "print": lambda rng: print_of(TRAINING_PRINT, TRAINING_FONTS, rng, bold=0.1),
    "shapes": lambda rng: _drawn(pick([*TRAINING_SHAPES.values()], rng)(rng), rng),
    "glyphs": lambda rng: _drawn(glyph(rng), rng),
    "textures": _training_texture,
    "scenes": _training_scene,
    "photographs": lambda rng: photograph_part(pick(library_photographs(), rng), rng),
}
BENCHMARK_NEGATIVES: dict[str, Draw] = {
    "blanks": _benchmark_blank,
    "noise": _benchmark_noise,
    "letters": lambda rng: print_of(BENCHMARK_PRINT, BENCHMARK_FONTS, rng, bold=0.08),
    "shapes": lambda rng: _drawn(pick([*BENCHMARK_SHAPES.values()], rng)(rng), rng),
}
