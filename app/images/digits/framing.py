"""The framing of digits: as MNIST frames them, whatever picture they come in."""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from app.images.digits.rules import without_rules
from app.images.digits.sheet import sheets
from app.images.pixels import Bytes, Floats, Mask, boxes, extent, extremes, middle, near, outermost, parts, surrounded

SIDE: Final = 28  # of a framed digit, in pixels
BOX: Final = 20  # of its ink: the longer side

_LEAST_PHOTOGRAPH = 96  # pixels of the shorter side: on less, neither rules nor a sheet are looked for
_SOLID = 0.4  # of the square around it: what more ink fills may be a sheet
_FILLED = 0.7  # of the box around it, unless that is as narrow as a 1
_ALONE = 0.6  # of the ink on a sheet: what a digit that is alone there makes up
_EVEN = 2  # grey levels: a picture whose edge varies no more is drawn, not photographed
_WORKING_SIDE = 512  # a larger picture is shrunk before anything is computed
_COARSE_SIDE = 192  # the ground is smooth
_UNEVEN = 0.09  # how far what is around a digit may be from ground and ink; a fog and spatters reach 0.07
_STROKE = 0.4  # of the strongest ink: what is part of a stroke
_LEAST_CONTRAST = 8  # grey levels
_PEAK = 12  # the rank of the pixel that is made white when strokes are brought to full strength
_LEAST_WIDTH = 1.5  # of a stroke in a framed digit, in pixels; 13 in 100 of MNIST's are thinner


@dataclass(frozen=True)
class Framed:
    """A digit framed as MNIST's are, and why there is none to be seen, if so."""

    pixels: Bytes  # (28, 28), ink light on black
    reason: str | None


@dataclass(frozen=True)
class _Found:
    framed: Framed
    doubtful: bool  # whether it may be a sheet, or what lies around one
    share: float  # of the picture's ink that is the digit's


def framed(picture: Image.Image) -> Framed:
    """Frame a picture of one digit in any colour on any other; see `framed_array`."""
    return framed_array(_grey(np.asarray(_shrunk(picture).convert("RGB"))))


def framed_array(grey: Bytes) -> Framed:
    """Frame a grey picture (H, W) of one digit, light on dark or dark on light.

    As in MNIST (Y. LeCun, C. Cortes, C. J. C. Burges) the ground is black, the strongest ink white, the ink's longer
    side 20 pixels, and its centre of mass the pixel (14, 14) of 28x28. What is so already, or is so inverted, is
    returned bit for bit. Shades, stripes, specks and rules of the ground are taken away, and on a photograph the
    desk around the sheet; strokes too thin to be shrunk are widened. `reason` is given where surely no digit is.
    """
    for candidate in (grey, 255 - grey) if grey.shape == (SIDE, SIDE) else ():
        if _is_framed(candidate):
            return Framed(candidate, None)
    if max(grey.shape) > _WORKING_SIDE:
        grey = np.asarray(_shrunk(Image.fromarray(grey)))
    return (_photographed(grey) if _may_be_photograph(grey) else _found(grey)).framed


def _may_be_photograph(grey: Bytes) -> bool:
    return min(grey.shape) >= _LEAST_PHOTOGRAPH and int(np.ptp(outermost(grey))) > _EVEN


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
    """Frame an image that shows nothing but background and ink."""
    ink, noise = _ink(grey)
    strong = _strongest(ink)
    if strong > 4 * noise and _speckled(ink > _STROKE * strong):
        ink, noise = _ink(np.asarray(Image.fromarray(grey).filter(ImageFilter.MedianFilter(3))))
        strong = _strongest(ink)
    if strong < max(_LEAST_CONTRAST, 4 * noise):
        return _refused("blank image" if strong < _LEAST_CONTRAST else "noise without a shape")
    level = max(_STROKE * strong, 2.5 * noise)
    strokes = _strokes(ink, level)
    return _reframed(ink, strokes, 2.5 * noise, np.count_nonzero(strokes) / np.count_nonzero(ink > level))


def _reframed(ink: Floats, strokes: Mask, floor: float, share: float) -> _Found:
    top, bottom, left, right = extent(strokes)
    longer, shorter = max(bottom - top, right - left), min(bottom - top, right - left)
    count = int(np.count_nonzero(strokes))
    if longer < 4:
        return _refused("ink too small for a digit")
    if count > 0.92 * longer * longer:
        return _refused("ink covers too much", doubtful=True)
    strong, away = _strongest(ink[strokes]), near(strokes) == 0
    if away.any() and _undecided(np.abs(ink[away]), strong) > _UNEVEN:
        return _refused("no even ground around a shape", doubtful=True)
    soft = ((ink - floor) / (strong - floor)).clip(0, 1)
    soft[away] = 0
    slab = count > _SOLID * longer * longer or (count > _FILLED * longer * shorter and longer < 4 * shorter)
    return _Found(Framed(_fitted(soft, longer), None), slab or bool(outermost(strokes).any()), share)


def _refused(reason: str, *, doubtful: bool = False) -> _Found:
    return _Found(Framed(np.zeros((SIDE, SIDE), np.uint8), reason), doubtful, 0.0)


def _shrunk(picture: Image.Image) -> Image.Image:
    factor = math.ceil(max(picture.size) / _WORKING_SIDE)
    return picture.reduce(factor) if factor > 1 else picture


def _grey(pixels: Bytes) -> Bytes:
    """(H, W, 3) -> (H, W), along the line of colours on which the picture differs most from its edge."""
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
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
    """The centre of mass, (y, x), in pixels; the middle of the first pixel is 0."""
    rows, columns = ink.sum(1, dtype=np.float64), ink.sum(0, dtype=np.float64)
    total = rows.sum()
    return float(rows @ np.arange(len(rows)) / total), float(columns @ np.arange(len(columns)) / total)


def _strongest(ink: Floats) -> float:
    """A value that a few pixels reach."""
    rank = min(ink.size, max(8, ink.size // 2000))
    upper = ink[ink > ink.max() / 2]  # most often there are enough, and few to be sorted
    some = upper if upper.size >= rank else ink
    return float(np.partition(some, some.size - rank, axis=None)[-rank])


def _speckled(mask: Mask) -> bool:
    """Return whether many pixels are isolated."""
    return int(np.count_nonzero(mask & (near(mask) == 1))) > max(5, mask.size // 2000)


def _ink(pixels: Bytes) -> tuple[Floats, float]:
    """Contrast (H, W) with the ground, positive where there is ink, and its noise (a standard deviation).

    The ground is plain, banded or shaded, whichever explains the picture.
    """
    grey = pixels.astype(np.float32)
    edge = np.sort(outermost(grey))
    away = grey - edge[len(edge) // 2]
    plain = away * _sign(away)  # ink is what is furthest from the ground
    noise = _noise(plain)
    unevenness = edge[len(edge) * 9 // 10] - edge[len(edge) // 10]
    if unevenness <= 0.15 * np.abs(plain).max() + 3 * noise:
        return plain, noise
    banded = (_banded(grey), _banded(grey.T).T)
    clean = [ink for ink in (plain, *banded) if _between(np.abs(ink)) < 0.085]
    if clean:
        return min(clean, key=lambda ink: float(np.abs(ink).mean())), noise
    ink = min((*banded, _flattened(grey)), key=lambda ink: _between(np.maximum(ink, 0)))
    return ink, max(_noise(ink), 5.0)  # such a ground is known no better


def _noise(ink: Floats) -> float:
    """Standard deviation of what is neither ink nor an edge of it, since both are few."""
    steps = np.abs(ink[:, 1:] - ink[:, :-1])
    return min(1.05 * middle(steps) if steps.size else 0.0, 1.5 * middle(np.abs(ink)))


def _sign(away: Floats) -> float:
    return 1.0 if float((away * away * away).sum()) >= 0 else -1.0


def _banded(grey: Floats) -> Floats:
    """Contrast with the ends of each column, whichever is lighter."""
    away: Floats = np.abs(grey - (grey[0] + grey[-1]) / 2)
    return away


def _between(ink: Floats) -> float:
    """Return the mean distance of the pixels from background and ink: 0 if all are either, 0.5 if none is."""
    return _undecided(ink, max(_strongest(ink), 1e-6))


def _undecided(ink: Floats, strong: float) -> float:
    """The same where ink is known to be that strong."""
    return float(np.minimum(ink, np.abs(strong - ink)).mean()) / strong


def _flattened(grey: Floats) -> Floats:
    """Contrast with a shaded ground: what remains when all that is narrower than 2/5 of the picture is wiped out."""
    size = grey.shape[::-1]
    picture = Image.fromarray(grey)
    picture = picture.reduce(max(1, math.ceil(max(size) / _COARSE_SIDE)))
    around = picture.resize((5, 5), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BILINEAR)
    coarse = np.asarray(picture)
    sign = _sign(coarse - around)
    reach = max(2, min(coarse.shape) // 5)
    wiped = extremes(np.pad(sign * coarse, reach, mode="edge"), reach, np.minimum)
    wiped = extremes(np.pad(wiped, reach, mode="reflect", reflect_type="odd"), reach, np.maximum)
    ground = np.asarray(Image.fromarray(sign * wiped).resize(size, Image.Resampling.BILINEAR))
    away: Floats = sign * (grey - ground)
    if sign < 0:
        away *= 255 / np.maximum(ground, 16)  # ink takes a share of the light, and there is less of it in the shade
    away -= middle(away)
    return away


def _strokes(ink: Floats, level: float) -> Mask:
    """Of the parts above `level` the one of most ink, and those near it that are not small."""
    mask = ink > level
    labels, count = parts(mask)
    if count < 2:
        return mask
    there, inside = labels[mask], ink[mask]
    lows, highs = boxes(mask, there, count)
    starts, ends = lows == 0, highs == np.array(mask.shape)[:, None] - 1
    spanning, touching = (starts & ends).any(0), (starts | ends).any(0)
    peak = np.zeros(count, np.float32)
    np.maximum.at(peak, there, inside)
    dark = peak > 0.7 * (peak if spanning.all() else peak[~spanning]).max()
    worth = np.bincount(there, inside, count) * dark * np.where(spanning, 0.02, np.where(touching, 0.25, 1))
    main = int(worth.argmax())
    gap = np.maximum(lows - highs[:, [main]], lows[:, [main]] - highs).max(0)
    reach = 0.3 * (highs - lows)[:, main].max() + 1
    mask &= ((worth >= 0.06 * worth[main]) & (gap <= reach))[labels]
    return mask


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
    left, top = (pad + place + 0.5 - 0.5 / scale - half for place in (x, y))
    box = (left, top, left + 2 * half, top + 2 * half)
    small = Image.fromarray(surrounded(ink, pad)).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    fitted = np.asarray(small).clip(0, 1)
    return np.rint(255 * (_widened(fitted) if scale < 1 else fitted)).astype(np.uint8)


def _widened(ink: Floats) -> Floats:
    """Strokes that shrinking made faint or thin brought to full strength and to the least width."""
    peak = float(np.partition(ink, -_PEAK, axis=None)[-_PEAK])
    slopes = float(np.abs(ink[1:] - ink[:-1]).sum() + np.abs(ink[:, 1:] - ink[:, :-1]).sum())
    width = 2 * peak * float(ink.sum()) / slopes  # a stroke of length l and height p has 2lp of slopes
    full: Floats = (ink / peak).clip(0, 1)
    if width < _LEAST_WIDTH:
        full = np.maximum(full, 0.4 * (_LEAST_WIDTH - width) * extremes(surrounded(full, 1), 1, np.maximum))
    return full
