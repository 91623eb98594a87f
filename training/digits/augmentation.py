"""Data augmentation for handwritten digits.

`elastic` applies affine and elastic distortions to a batch; its output is still in MNIST's format. `degraded` adds the
defects of paper, pens and cameras to one image; the framing that the server applies to every image (app.images) then
cleans it.
"""

import io
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

Floats: TypeAlias = npt.NDArray[np.float32]
Pixels: TypeAlias = npt.NDArray[np.uint8]

ANGLE = 0.3  # radians, at most
SHEAR = 0.25
SCALE = 0.15  # as a share, of both axes and of one against the other
SHIFT = 0.12  # of half a side: 1.7 pixels
BEND = 0.07  # of half a side: the largest deviation of the elastic displacement, a pixel (Simard et al. 2003)
KNOTS = 5  # of the displacement, along a side
SHARPEN = 2.0  # steepness of grey levels, at most
STROKE = 0.7  # the share of a stroke's dilated or eroded form, at most


def elastic(images: Tensor) -> Tensor:
    """(B, 28, 28) in 0..1 -> affine and elastic distortions, thinner or thicker strokes.

    Draws from torch's global generator.
    """
    grid = F.affine_grid(_affine(len(images)), [len(images), 1, *images.shape[1:]], align_corners=False)
    strength = torch.empty(len(images), 1, 1, 1).uniform_(0, BEND)
    knots = torch.randn(len(images), 2, KNOTS, KNOTS) * strength
    displacement = F.interpolate(knots, images.shape[1:], mode="bicubic", align_corners=True)  # (B, 2, 28, 28)
    bent = F.grid_sample(images.unsqueeze(1), grid + displacement.permute(0, 2, 3, 1), align_corners=False)
    restroked = _restroked(bent)
    gain = torch.empty(len(images), 1, 1, 1).uniform_(1, SHARPEN)  # soft edges would mark distorted digits
    return (0.5 + gain * (restroked - 0.5)).clamp(0, 1).squeeze(1)


def _affine(count: int) -> Tensor:
    """Random affine maps, (count, 2, 3)."""
    angle, shear, scale, ratio = (torch.empty(count).uniform_(-most, most) for most in (ANGLE, SHEAR, SCALE, SCALE))
    cosine, sine, stretch = angle.cos() * (1 + scale), angle.sin() * (1 + scale), 1 + ratio
    rows = [torch.stack([cosine * stretch, shear - sine], 1), torch.stack([sine, cosine / stretch], 1)]
    return torch.cat([torch.stack(rows, 1), torch.empty(count, 2, 1).uniform_(-SHIFT, SHIFT)], 2)


def _restroked(images: Tensor) -> Tensor:
    """(B, 1, H, W) with randomly dilated or eroded strokes, in grey levels."""
    share = torch.empty(len(images), 1, 1, 1).uniform_(-STROKE, STROKE)
    thick = F.max_pool2d(images, 3, 1, 1)
    thin = -F.max_pool2d(-images, 3, 1, 1)
    other = torch.where(share > 0, thick, thin)
    share = torch.where(share > 0, share, share * 0.5).abs()  # a thin stroke disappears quickly
    return images + share * (other - images)


def degraded(image: Pixels, rng: np.random.Generator) -> Pixels:
    """A digit, light on black, with random defects of canvas, paper and camera; not yet framed."""
    grey: Floats = image.astype(np.float32) / np.float32(255)
    if rng.random() < 0.35:
        grey = _on_canvas(grey, rng)
    for index in sorted(rng.permutation(len(_DEGRADATIONS))[: rng.integers(1, 4)]):  # in their physical order
        grey = _DEGRADATIONS[index](grey, rng)
    grey = np.clip(grey, 0, 1, dtype=np.float32)
    if rng.random() < 0.3:
        grey = 1 - grey
    pixels = (grey * 255).astype(np.uint8)
    if rng.random() >= 0.2:
        return pixels
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=int(rng.integers(20, 80)))
    return np.asarray(Image.open(stream))


def _on_canvas(grey: Floats, rng: np.random.Generator) -> Floats:
    """The digit resized, at a random position of a canvas."""
    factor = rng.uniform(0.4, 0.7) if rng.random() < 0.4 else float(np.exp(rng.uniform(0, np.log(3))))
    side = max(round(28 * factor), 8)
    sized = np.asarray(Image.fromarray(grey).resize((side, side), _RESAMPLINGS[int(rng.integers(3))]))
    height, width = (side + int(rng.integers(0, side + 1)) for _ in range(2))
    canvas = np.zeros((height, width), np.float32)
    top, left = int(rng.integers(0, height - side + 1)), int(rng.integers(0, width - side + 1))
    canvas[top : top + side, left : left + side] = np.clip(sized, 0, 1)
    return canvas


_RESAMPLINGS = (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.BOX)


def _banded(grey: Floats, rng: np.random.Generator) -> Floats:
    """A horizontal or vertical bar inverted."""
    grey = grey.copy()
    side = grey.shape[int(rng.integers(2))]
    start, width = int(rng.integers(0, side)), int(rng.integers(1, max(side // 4, 2)))
    bar = grey[start : start + width] if rng.random() < 0.5 else grey[:, start : start + width]
    bar[...] = 1 - bar
    return grey


def _scribbled(grey: Floats, rng: np.random.Generator) -> Floats:
    """Lines, dashes and dots of another pen."""
    height, width = grey.shape
    sheet = Image.new("L", (width, height))
    pen = ImageDraw.Draw(sheet)
    for _ in range(int(rng.integers(1, 4))):
        count = int(rng.integers(2, 7))
        path = np.stack([rng.uniform(0, width, count), rng.uniform(0, height, count)], 1)
        if rng.random() < 0.5:  # from side to side
            path[:, 0] = np.linspace(0, width, count)
            path[:, 1] = path[0, 1] + rng.normal(0, height / 12, count)
        if rng.random() < 0.5:
            path = path[:, ::-1] * (width / height, height / width)
        if rng.random() < 0.4:
            dense = np.stack([np.interp(np.arange(0, count - 1, 0.15), np.arange(count), axis) for axis in path.T], 1)
            pen.point([(float(x), float(y)) for x, y in dense], fill=255)
        else:
            pen.line(
                [(float(x), float(y)) for x, y in path], fill=255, width=1 + int(rng.integers(max(width // 28, 1)))
            )
    return np.maximum(grey, np.asarray(sheet, np.float32) / 255 * np.float32(rng.uniform(0.4, 1)))


def _splashed(grey: Floats, rng: np.random.Generator) -> Floats:
    """Blots that add ink or take it away."""
    field = ndimage.gaussian_filter(rng.standard_normal(grey.shape), rng.uniform(0.6, 2) * len(grey) / 28)
    blots = field > np.quantile(field, rng.uniform(0.85, 0.97))
    return np.where(blots, np.float32(rng.uniform(0, 1)), grey)


def _blurred(grey: Floats, rng: np.random.Generator) -> Floats:
    """Defocus or motion blur."""
    unit = max(min(grey.shape) / 28, 0.5)
    if rng.random() < 0.5:
        return np.asarray(ndimage.gaussian_filter(grey, rng.uniform(0.4, 1.3) * unit), np.float32)
    length, angle = rng.uniform(1, 3) * unit, rng.uniform(0, np.pi)
    moved = [
        ndimage.shift(grey, (at * np.sin(angle), at * np.cos(angle)), order=1) for at in np.linspace(-length, length, 5)
    ]
    return np.asarray(np.mean(moved, 0), np.float32)


def _faded(grey: Floats, rng: np.random.Generator) -> Floats:
    """Reduced contrast at a random brightness."""
    contrast = rng.uniform(0.25, 1)
    return grey * np.float32(contrast) + np.float32(rng.uniform(0, 1 - contrast))


def _papered(grey: Floats, rng: np.random.Generator) -> Floats:
    """Shade and texture of paper: light from one side, clouds, ruled or squared lines."""
    height, width = grey.shape
    down, right = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    paper = rng.uniform(-0.4, 0.4) * down + rng.uniform(-0.4, 0.4) * right
    if rng.random() < 0.5:
        clouds = ndimage.gaussian_filter(rng.standard_normal(grey.shape), rng.uniform(1.5, 6) * height / 28)
        paper += rng.uniform(0.1, 0.5) * clouds / max(float(np.abs(clouds).max()), 1e-6)
    if rng.random() < 0.4:
        pitch, line = rng.uniform(0.2, 0.5), np.float32(rng.uniform(0.1, 0.35))
        for axis in (down, right)[: int(rng.integers(1, 3))]:
            paper += line * ((axis + rng.uniform(0, 1)) % pitch < 1.1 / height)
    paper -= paper.min()
    return np.asarray(np.maximum(grey, paper) if rng.random() < 0.5 else paper + grey * (1 - paper), np.float32)


def _noisy(grey: Floats, rng: np.random.Generator) -> Floats:
    """Sensor noise: Gaussian, Poisson, or salt and pepper."""
    kind = rng.integers(3)
    if kind == 0:
        return np.asarray(grey + rng.normal(0, rng.uniform(0.02, 0.25), grey.shape), np.float32)
    if kind == 1:
        light = rng.uniform(3, 60)
        return np.asarray(rng.poisson(np.clip(grey, 0, 1) * light) / light, np.float32)
    failed = rng.random(grey.shape)
    share = rng.uniform(0.01, 0.2)
    return np.where(failed < share / 2, np.float32(0), np.where(failed > 1 - share / 2, np.float32(1), grey))


_DEGRADATIONS: tuple[Callable[[Floats, np.random.Generator], Floats], ...] = (
    # the outline alone, or the faint stroke of a dry pen
    lambda grey, rng: np.asarray(grey - rng.uniform(0.4, 1) * ndimage.grey_erosion(grey, 3), np.float32),
    _scribbled,
    _splashed,
    _papered,
    _faded,
    _banded,
    _blurred,
    _noisy,
)
