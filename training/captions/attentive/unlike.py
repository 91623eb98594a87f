"""Images that are no photographs, to fit doubt with: drawings, screenshots, text, plots, blanks and noise."""

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Final, TypeAlias

import numpy as np
from matplotlib import pyplot as plt
from PIL import Image, ImageDraw, ImageFont

Colour: TypeAlias = tuple[int, int, int]

_WORDS = (
    "the of a to in is was for with as on at by from an be this that report total order invoice value system user"
    " server model error page result chapter table figure date name time data error item price hello world"
)
WORDS: Final = _WORDS.split()


def unlike(count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` images as PNG files, every kind in turn."""
    for index in range(count):
        draw = np.random.default_rng([seed, index])
        width, height = (int(side) for side in draw.integers(200, 700, 2))
        image = KINDS[index % len(KINDS)](draw, width, height)
        stream = BytesIO()
        image.save(stream, "PNG")
        yield stream.getvalue()


def _colour(draw: np.random.Generator, least: int = 0, most: int = 256) -> Colour:
    red, green, blue = draw.integers(least, most, 3).tolist()
    return red, green, blue


def _blank(draw: np.random.Generator, width: int, height: int) -> Image.Image:
    """One colour, or a slow change between two."""
    first, second = np.array(_colour(draw)), np.array(_colour(draw))
    share = np.linspace(0, float(draw.random() < 0.5), width)[None, :, None]
    pixels = np.broadcast_to(first * (1 - share) + second * share, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def _noise(draw: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise of grains of some size."""
    grain = int(draw.integers(1, 40))
    shape = (-(-height // grain), -(-width // grain), 3 if draw.random() < 0.7 else 1)
    pixels = np.broadcast_to(draw.integers(0, 256, shape, np.uint8), (*shape[:2], 3))
    how = Image.Resampling.NEAREST if draw.random() < 0.5 else Image.Resampling.BICUBIC
    return Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), how)


def _text(draw: np.random.Generator, width: int, height: int) -> Image.Image:
    """Lines of words on paper."""
    dark = draw.random() < 0.3
    paper, ink = (_colour(draw, 0, 60), _colour(draw, 180)) if dark else (_colour(draw, 225), _colour(draw, 0, 90))
    image = Image.new("RGB", (width, height), paper)
    pen, size = ImageDraw.Draw(image), int(draw.integers(10, 30))
    font = ImageFont.load_default(size)
    for top in range(size, height - size, int(size * 1.5)):
        words = draw.choice(WORDS, int(draw.integers(2, max(width // (size * 3), 3))))
        pen.text((size, top), " ".join(words), ink, font)
    return image


def _screenshot(draw: np.random.Generator, width: int, height: int) -> Image.Image:
    """Bars, panels, buttons and labels."""
    image = Image.new("RGB", (width, height), _colour(draw, 200))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(12)
    pen.rectangle((0, 0, width, int(draw.integers(20, 60))), _colour(draw))
    pen.rectangle((0, 60, int(width * draw.uniform(0.1, 0.4)), height), _colour(draw, 150))
    for _ in range(int(draw.integers(5, 30))):
        left, top = int(draw.integers(0, width - 60)), int(draw.integers(0, height - 30))
        right, bottom = left + int(draw.integers(30, 200)), top + int(draw.integers(12, 60))
        pen.rounded_rectangle((left, top, right, bottom), 4, _colour(draw, 120), _colour(draw, 0, 120))
        pen.text((left + 4, top + 2), str(draw.choice(WORDS)), _colour(draw, 0, 100), font)
    return image


def _drawing(draw: np.random.Generator, width: int, height: int) -> Image.Image:
    """Lines and shapes, filled or not."""
    image = Image.new("RGB", (width, height), _colour(draw, 200) if draw.random() < 0.7 else _colour(draw))
    pen = ImageDraw.Draw(image)
    for _ in range(int(draw.integers(2, 25))):
        left, right = sorted(draw.integers(0, width, 2).tolist())
        top, bottom = sorted(draw.integers(0, height, 2).tolist())
        line, fill = _colour(draw), _colour(draw) if draw.random() < 0.4 else None
        thick = int(draw.integers(1, 8))
        match draw.integers(4):
            case 0:
                pen.ellipse((left, top, right, bottom), fill, line, thick)
            case 1:
                pen.rectangle((left, top, right, bottom), fill, line, thick)
            case 2:
                pen.line([(int(x), int(y)) for x, y in draw.integers(0, (width, height), (6, 2))], line, thick)
            case _:
                start, end = draw.integers(0, 360, 2).tolist()
                pen.arc((left, top, right, bottom), start, end, line, thick)
    return image


def _plot(draw: np.random.Generator, width: int, height: int) -> Image.Image:
    """Curves, bars or points with axes."""
    canvas, axes = plt.subplots(figsize=(width / 100, height / 100))
    across = np.arange(int(draw.integers(5, 40)))
    for _ in range(int(draw.integers(1, 5))):
        down = draw.normal(0, 1, len(across)).cumsum()
        getattr(axes, str(draw.choice(["plot", "bar", "scatter"])))(across, down)
    axes.set(title=" ".join(draw.choice(WORDS, 3)), xlabel=str(draw.choice(WORDS)))
    axes.grid(bool(draw.random() < 0.5))
    stream = BytesIO()
    canvas.savefig(stream, format="png", dpi=100)
    plt.close(canvas)
    return Image.open(stream).convert("RGB")


KINDS: Final[tuple[Callable[[np.random.Generator, int, int], Image.Image], ...]] = (
    _drawing,
    _screenshot,
    _text,
    _plot,
    _blank,
    _noise,
)
