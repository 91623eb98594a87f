"""The framing of digits: as MNIST frames them, whatever image they come in."""

import math
from dataclasses import dataclass
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from app.images.digits.ground import contrast, strongest, undecided
from app.images.digits.parts import SEVERAL, digit_parts
from app.images.digits.rules import without_rules
from app.images.digits.sheet import sheets
from app.images.pixels import Bytes, Floats, extent, neighbours, outermost

SIDE: Final = 28  # of a framed digit, in pixels
BOX: Final = 20  # of its ink: the longer side

_LEAST_PHOTOGRAPH = 96  # pixels of the shorter side: on less, neither rules nor a sheet are looked for
_SOLID = 0.4  # of the square around it: what more ink fills may be a sheet
_FILLED = 0.7  # of the box around it, unless that is as narrow as a 1
_ALONE = 0.6  # of the ink on a sheet: what a digit that is alone there makes up
_EVEN = 2  # grey levels: an image whose edge varies no more is drawn, not photographed
_PHOTOGRAPH_SIDE = 512  # a larger photograph, which may show rules or a desk, is shrunk before anything is computed
_DRAWING_SIDE = 256  # so is a larger drawing
_LARGEST_SIDE = 2048  # an image is searched for a small digit at this size at most
_UNEVEN = 0.09  # how far what is around a digit may be from ground and ink; a fog and spatters reach 0.07
_STROKE = 0.4  # of the strongest ink: what is part of a stroke
_LEAST_CONTRAST = 8  # grey levels
_PEAK = 12  # the rank of the pixel that is made white when strokes are brought to full strength
_LEAST_WIDTH = 1.5  # of a stroke in a framed digit, in pixels; 13 in 100 of MNIST's are thinner


@dataclass(frozen=True)
class Framed:
    """A digit framed as MNIST's are, or the reason why there is none."""

    pixels: Bytes  # (28, 28), ink light on black
    reason: str | None


@dataclass(frozen=True)
class _Found:
    framed: Framed
    doubtful: bool  # whether it may be a sheet, or what lies around one
    share: float  # of the image's ink that is the digit's


def framed(image: Image.Image) -> Framed:
    """Frame an image of one digit in any colour on any other; see `framed_array`."""
    return framed_array(grey_levels(np.asarray(shrunk(image, _LARGEST_SIDE).convert("RGB"))))


def framed_array(grey: Bytes) -> Framed:
    """Frame a grey image (H, W) of one digit, light on dark or dark on light.

    As in MNIST (Y. LeCun, C. Cortes, C. J. C. Burges) the ground is black, the strongest ink white, the ink's longer
    side 20 pixels, and its centre of mass the pixel (14, 14) of 28x28. A framed digit, or its inverse, is returned bit
    for bit. Shades, stripes, specks, rules, frames and underlines are removed, and on a photograph the desk around the
    sheet; strokes too thin to be shrunk are widened, gaps between dots or dashes closed. `reason` is given where
    surely no digit is, or more than one.
    """
    for candidate in (grey, 255 - grey) if grey.shape == (SIDE, SIDE) else ():
        if _is_framed(candidate):
            return Framed(candidate, None)
    photograph = is_photograph(grey)
    side = _PHOTOGRAPH_SIDE if photograph else _DRAWING_SIDE
    if max(grey.shape) > side:
        small = np.asarray(shrunk(Image.fromarray(grey), side))
        closer = _closer(grey, small)
        grey = small if closer is None else closer
    return (_photographed(grey) if photograph else _found(grey)).framed


def is_photograph(grey: Bytes) -> bool:
    """Return whether an image may show ruled paper, or a desk around the sheet."""
    return min(grey.shape) >= _LEAST_PHOTOGRAPH and int(np.ptp(outermost(grey))) > _EVEN


def _closer(grey: Bytes, small: Bytes) -> Bytes | None:
    """Return the part of a large image around the only ink on it, if that is small; `small` is the image shrunk."""
    smooth = np.asarray(cv2.GaussianBlur(small, (3, 3), 0), np.int16)
    low, ground, high = np.percentile(smooth[::2, ::2], (5, 50, 95))
    mask = np.abs(smooth - round(ground)) > max(_LEAST_CONTRAST, 2 * (high - low))
    if not 4 <= np.count_nonzero(mask) < mask.size // 50:
        return None
    grown = cv2.dilate(mask.view(np.uint8), np.ones((5, 5), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(grown)
    left, top, width, height, _ = stats[1 + stats[1:, cv2.CC_STAT_AREA].argmax()].tolist()
    around = max(width, height)
    if around > max(small.shape) // 4:
        return None
    factor = max(grey.shape) / max(small.shape)
    rows, columns = (
        slice(max(0, math.floor((start - around) * factor)), math.ceil((start + size + around) * factor))
        for start, size in ((top, height), (left, width))
    )
    return grey[rows, columns]


def turned(pixels: Bytes, degrees: float) -> Bytes:
    """Framed digits (B, 28, 28) turned counterclockwise about the middle."""
    return np.stack([np.asarray(Image.fromarray(each).rotate(degrees, Image.Resampling.BICUBIC)) for each in pixels])


def _photographed(grey: Bytes) -> _Found:
    """Frame an image that may show ruled paper, or a desk around the sheet."""
    found = _off_rules(grey)
    if not found.doubtful:
        return found
    again = (_off_rules(sheet) for sheet in sheets(grey))
    return next((each for each in again if not each.doubtful and each.share > _ALONE), found)


def _off_rules(grey: Bytes) -> _Found:
    """Frame an image without the paper's rules if that finds a digit clear of the edge, else with them."""
    clean = without_rules(grey)
    if clean is not grey:
        found = _found(clean)
        if not found.doubtful and found.framed.reason is None:
            return found
    return _found(grey)


def _found(grey: Bytes) -> _Found:
    """Frame an image that shows nothing but ground and ink."""
    ink, noise = contrast(grey)
    strong = strongest(ink)
    mask = ink > _STROKE * strong
    if strong > 4 * noise and np.count_nonzero(mask & (neighbours(mask) == 1)) > max(5, mask.size // 2000):  # speckles
        ink, noise = contrast(np.asarray(cv2.medianBlur(grey, 3), np.uint8))
        strong = strongest(ink)
    if strong < max(_LEAST_CONTRAST, 4 * noise):
        return _rejected("blank image" if strong < _LEAST_CONTRAST else "noise without a shape")
    digit = digit_parts(ink, max(_STROKE * strong, 2.5 * noise))
    top, bottom, left, right = extent(digit.strokes)
    longer, shorter = max(bottom - top, right - left), min(bottom - top, right - left)
    count = int(np.count_nonzero(digit.strokes))
    if longer < 4:
        return _rejected("ink too small for a digit")
    floor, strong, away = 2.5 * noise, strongest(digit.ink[digit.strokes]), neighbours(digit.strokes) == 0
    ground = away if digit.others is None else away & (neighbours(digit.others) == 0)
    if ground.any() and undecided(np.abs(ink[ground]), strong) > _UNEVEN:
        return _rejected("no even ground around a shape", doubtful=True)
    if count > 0.92 * longer * longer:
        return _rejected("ink covers too much", doubtful=True)
    if digit.several:
        return _rejected(SEVERAL)
    rows, columns = slice(max(0, top - 1), bottom + 1), slice(max(0, left - 1), right + 1)
    soft = ((digit.ink[rows, columns] - floor) / (strong - floor)).clip(0, 1)
    soft[away[rows, columns]] = 0
    slab = count > _SOLID * longer * longer or (count > _FILLED * longer * shorter and longer < 4 * shorter)
    return _Found(Framed(_fitted(soft, longer), None), slab or bool(outermost(digit.strokes).any()), digit.share)


def _rejected(reason: str, *, doubtful: bool = False) -> _Found:
    return _Found(Framed(np.zeros((SIDE, SIDE), np.uint8), reason), doubtful, 0.0)


def shrunk(image: Image.Image, longest: int) -> Image.Image:
    """Reduce an image by a whole factor until no side is longer than `longest` pixels."""
    factor = math.ceil(max(image.size) / longest)
    return image.reduce(factor) if factor > 1 else image


def grey_levels(pixels: Bytes) -> Bytes:
    """(H, W, 3) -> (H, W), along the line of colours on which the image differs most from its edge."""
    red, green, blue = cv2.split(pixels)
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return np.asarray(red, np.uint8)
    away = pixels.reshape(-1, 3) - np.median(outermost(pixels), axis=0).astype(np.float32)
    axis = np.linalg.eigh(away.T @ away)[1][:, -1]
    along = away @ (axis if axis.sum() >= 0 else -axis)
    low, high = along.min(), along.max()
    grey: Bytes = np.rint((along - low) * (255 / max(high - low, 255))).astype(np.uint8)
    return grey.reshape(pixels.shape[:2])


def _is_framed(grey: Bytes) -> bool:
    """Return whether (28, 28) is framed as in MNIST: all of its images satisfy these conditions."""
    if grey.max() < 192:
        return False
    top, bottom, left, right = extent(grey > 0)
    y, x = _centre(grey)
    return BOX - 2 <= max(bottom - top, right - left) <= BOX and abs(y - SIDE / 2) <= 1 and abs(x - SIDE / 2) <= 1


def _centre(ink: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the centre of mass, (y, x), in pixels; the middle of the first pixel is 0."""
    rows, columns = ink.sum(1, dtype=np.float64), ink.sum(0, dtype=np.float64)
    total = rows.sum()
    return float(rows @ np.arange(len(rows)) / total), float(columns @ np.arange(len(columns)) / total)


def _fitted(ink: Floats, longer: int) -> Bytes:
    """(28, 28) of `ink` from 0 to 1: its longer side of that many pixels made 20, its centre of mass the middle.

    Ink that is about that size already is moved by whole pixels and stays as sharp as it is.
    """
    y, x = _centre(ink)
    scale = BOX / longer
    if BOX - 3 <= longer <= BOX + 1:
        scale, y, x = 1.0, round(y), round(x)
    half = (SIDE / 2) / scale
    pad = math.ceil(half + 0.5 / scale) + 1
    left, top = (pad + centre + 0.5 - 0.5 / scale - half for centre in (x, y))
    padded = Image.fromarray(cv2.copyMakeBorder(ink, pad, pad, pad, pad, cv2.BORDER_CONSTANT))
    box = (left, top, left + 2 * half, top + 2 * half)
    fitted = np.asarray(padded.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)).clip(0, 1)
    return np.rint(255 * (_widened(fitted) if scale < 1 else fitted)).astype(np.uint8)


def _widened(ink: Floats) -> Floats:
    """Return ink (28, 28) of 0 to 1 with strokes that shrinking made faint or thin at full strength and least width."""
    peak = float(np.partition(ink, -_PEAK, axis=None)[-_PEAK])
    slopes = float(np.abs(ink[1:] - ink[:-1]).sum() + np.abs(ink[:, 1:] - ink[:, :-1]).sum())
    width = 2 * peak * float(ink.sum()) / slopes  # a stroke of length l and height p has 2lp of slopes
    full: Floats = (ink / peak).clip(0, 1)
    if width < _LEAST_WIDTH:
        full = np.maximum(full, 0.4 * (_LEAST_WIDTH - width) * cv2.dilate(full, np.ones((3, 3), np.uint8)))
    return full
