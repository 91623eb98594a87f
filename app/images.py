"""From bytes to what a model sees: checked decoding, the framing of digits, the framing of photographs.

    bytes --decoded--> RGB picture --framed--> 28x28 grey digit, as MNIST's are
                                   --photo---> 224x224 RGB --normalised--> floats

Training, evaluation and the server call these same functions.
"""

import io
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile, ImageFilter
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.errors import Malformed, TooLarge

Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

MAX_PIXELS: Final = 25_000_000
SIDE: Final = 28  # of a framed digit
BOX: Final = 20  # the ink's longer side
PHOTO_SIZE: Final = 224

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's, of RGB in 0..1
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)

# Pillow's readers are called by class, since `Image.open` warns of large images before their size can be refused.
_READERS: dict[str, tuple[bytes, Callable[[io.BytesIO], ImageFile.ImageFile]]] = {
    "PNG": (b"\x89PNG\r\n\x1a\n", PngImageFile),
    "JPEG": (b"\xff\xd8\xff", JpegImageFile),
    "WebP": (b"RIFF", WebPImageFile),
    "BMP": (b"BM", BmpImageFile),
    "GIF": (b"GIF8", GifImageFile),
}
_UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decoded(content: bytes, *, name: str = "image", least: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The checked, upright RGB picture: first frame, alpha over white, in sRGB.

    With `least` the picture may be smaller by a whole factor, as long as both its sides stay at least that many
    pixels. Raise Malformed for what is none of the formats or is damaged, TooLarge for more than `max_pixels`; `name`
    is what the message calls it.
    """
    form = next((form for form, (magic, _) in _READERS.items() if content.startswith(magic)), None)
    if form is None:
        raise Malformed(f"{name}: expected one of {', '.join(_READERS)}, found {content[:8].hex(' ') or 'nothing'}")
    try:
        picture = _READERS[form][1](io.BytesIO(content))
        width, height = picture.size
        if width * height > max_pixels:
            raise TooLarge(f"{name}: expected at most {max_pixels} pixels, found {width} x {height}", hopeless=False)
        if least:
            picture.draft(None, (least, least))
        picture.load()
        return _upright(_srgb(_reduced(_opaque(picture), least), picture), picture.info.get("exif"))
    except TooLarge:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file leads them to
        raise Malformed(f"{name}: expected a whole {form} image, found one that can't be decoded: {error}") from error


def _opaque(picture: Image.Image) -> Image.Image:
    """L, RGB or CMYK: 8 bits a channel, transparency over white."""
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        ground = Image.new("RGB", picture.size, "white")
        ground.paste(layer, mask=layer.getchannel("A"))
        return ground
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    return picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("L" if picture.mode == "1" else "RGB")


def _reduced(picture: Image.Image, least: int | None) -> Image.Image:
    factor = min(picture.size) // least if least else 1
    return picture.reduce(factor) if factor > 1 else picture


def _srgb(picture: Image.Image, source: Image.Image) -> Image.Image:
    """RGB as the embedded colour profile means it; a profile that is unusable or for other channels is ignored."""
    profile = source.info.get("icc_profile")
    if profile:
        try:
            found = ImageCms.profileToProfile(
                picture, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except (ImageCms.PyCMSError, OSError, ValueError):
            found = None
        if found is not None:
            return found
    return picture.convert("RGB")


def _upright(picture: Image.Image, exif: bytes | None) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(exif or b""))
    return picture if turn is None else picture.transpose(turn)


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory, 1 (upright) if there is none that can be read."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    directory = tiff[start + 2 :]
    for entry in (directory[at : at + 10] for at in range(0, min(len(directory), 12 * 512) - 9, 12)):
        tag, kind, count, value = struct.unpack(f"{order}HHIH", entry)
        if (tag, kind, count) == (0x0112, 3, 1):
            return int(value)
    return 1


@dataclass(frozen=True)
class Framed:
    """A digit as MNIST frames it, and why there is none to be seen."""

    pixels: Bytes  # (28, 28), ink light on black
    reason: str | None


def framed(picture: Image.Image) -> Framed:
    """Frame an RGB picture of a digit in any two colours; see `framed_array`."""
    picture = _shrunk(picture)
    if picture.mode == "L":
        return framed_array(np.asarray(picture))
    return framed_array(_grey(np.asarray(picture.convert("RGB"))))


_WORKING_SIDE = 512


def _shrunk(picture: Image.Image) -> Image.Image:
    factor = math.ceil(max(picture.size) / _WORKING_SIDE)
    return picture.reduce(factor) if factor > 1 else picture


def _grey(pixels: Bytes) -> Bytes:
    """(H, W, 3) -> (H, W) along the colours' axis of greatest contrast with the ground."""
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        return pixels[..., 0]
    flat = pixels.reshape(-1, 3).astype(np.float32)
    away = flat - np.median(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]), axis=0)
    axis = np.linalg.eigh(away.T @ away)[1][:, -1]
    along = away @ (axis * (1.0 if axis.sum() >= 0 else -1.0))
    low, high = float(along.min()), float(along.max())
    grey = (along - low) * (255 / max(high - low, 255.0))
    return np.rint(grey).astype(np.uint8).reshape(pixels.shape[:2])


def framed_array(grey: Bytes) -> Framed:
    """Frame a grey picture (H, W) of one digit, light on dark or dark on light."""
    if grey.shape == (SIDE, SIDE):
        for pixels in (grey, 255 - grey):
            if _is_framed(pixels):
                return Framed(pixels, None)
    if max(grey.shape) > _WORKING_SIDE:
        grey = np.asarray(_shrunk(Image.fromarray(grey)))
    ink, noise = _ink(grey)
    strong = _strongest(ink)
    if _speckled(ink > 0.4 * strong):
        ink, noise = _ink(np.asarray(Image.fromarray(grey).filter(ImageFilter.MedianFilter(3))))
        strong = _strongest(ink)
    if strong < max(10.0, 4 * noise):
        return _refused("blank image" if strong < 10 else "noise without a shape")
    floor = 2.5 * noise
    kept = _strokes(ink, strong, floor)
    top, bottom, left, right = _extent(kept)
    longer = max(bottom - top, right - left)
    if longer < 4:
        return _refused("ink too small for a digit")
    if np.count_nonzero(kept) > 0.92 * longer * longer:
        return _refused("ink covers too much")
    soft = np.where(_grown(kept), np.clip((ink - floor) / (strong - floor), 0, 1), 0).astype(np.float32)
    return Framed(_fitted(soft, longer), None)


def _refused(reason: str) -> Framed:
    return Framed(np.zeros((SIDE, SIDE), np.uint8), reason)


def _noise(grey: Floats) -> float:
    """Standard deviation of the pixels' noise, from neighbours' differences: strokes have few edges."""
    steps = np.abs(grey[:, 1:] - grey[:, :-1]).ravel()
    return 1.05 * float(np.partition(steps, steps.size // 2)[steps.size // 2]) if steps.size else 0.0


def _is_framed(grey: Bytes) -> bool:
    """Ink within 20x20, one side of it full, centre of mass in the middle pixel, as in all of MNIST."""
    if grey.max() < 192:
        return False
    top, bottom, left, right = _extent(grey > 0)
    if not BOX - 2 <= max(bottom - top, right - left) <= BOX:
        return False
    y, x = _centre(grey)
    return 13 <= y <= 15 and 13 <= x <= 15


def _extent(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _centre(ink: npt.NDArray[Any]) -> tuple[float, float]:
    rows, columns = ink.sum(1, dtype=np.float64), ink.sum(0, dtype=np.float64)
    total = rows.sum()
    return float(rows @ np.arange(len(rows)) / total), float(columns @ np.arange(len(columns)) / total)


def _speckled(mask: Mask) -> bool:
    """Whether many of its pixels stand alone."""
    padded = np.pad(mask, 1).astype(np.uint8)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    near = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return int(np.count_nonzero(mask & (near == 1))) > max(5, mask.size // 2000)


def _ink(pixels: Bytes) -> tuple[Floats, float]:
    """(H, W) contrast with the ground, positive where there is ink: the ground is plain, banded or shaded."""
    grey = pixels.astype(np.float32)
    noise = _noise(grey)
    edge = np.sort(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]]))
    middle = edge[len(edge) // 2]
    away = grey - middle
    plain = away * _sign(away)
    tolerance = 0.15 * float(np.abs(away).max()) + 3 * noise
    if edge[len(edge) * 9 // 10] - edge[len(edge) // 10] <= tolerance:
        return plain, noise
    candidates = [_banded(grey), _banded(grey.T).T, _flattened(grey)]
    reach = max(edge[-1] - middle, middle - edge[0])
    if reach > float(os.environ.get("REACH", ".8")) * np.abs(away).max():
        candidates.append(plain)
    return min(candidates, key=_unevenness), max(noise, 5.0)


import os
LAM = float(os.environ.get("LAM", "0.2"))
STAGE = os.environ.get("STAGE", "edge")


def _unevenness(ink: Floats) -> float:
    strong = max(_strongest(ink), 1e-6)
    size = np.maximum(ink, 0)
    return (float(np.minimum(size, np.abs(strong - size)).mean()) + LAM * float(size.mean())) / strong


def _strongest(ink: Floats) -> float:
    rank = min(ink.size, max(8, ink.size // 2000))
    return float(np.partition(ink, ink.size - rank, axis=None)[-rank])


def _banded(grey: Floats) -> Floats:
    return np.abs(grey - (grey[0] + grey[-1]) / 2)


def _sign(away: Floats) -> float:
    return 1.0 if float((away * away * away).sum()) >= 0 else -1.0


_COARSE = 192


def _flattened(grey: Floats) -> Floats:
    """Ink on a shaded ground."""
    size = grey.shape[::-1]
    picture = Image.fromarray(grey)
    picture = picture.reduce(max(1, math.ceil(max(size) / _COARSE)))
    small = np.asarray(picture)
    around = picture.resize((5, 5), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BILINEAR)
    sign = _sign(small - np.asarray(around))
    reach = max(2, min(small.shape) // 5)
    least = _widened((np.pad(sign * small, reach, mode="edge") if STAGE == "edge" else np.pad(sign * small, reach, mode="reflect", reflect_type="odd")), reach, np.minimum)
    ground = sign * _widened(np.pad(least, reach, mode="reflect", reflect_type="odd"), reach, np.maximum)
    full = np.asarray(Image.fromarray(ground).resize(size, Image.Resampling.BILINEAR))
    away = (grey - full) * sign
    if sign < 0:
        away *= 255 / np.maximum(full, 16)
    return away - float(np.median(away))


def _widened(grey: Floats, reach: int, extreme: Any) -> Floats:
    """The extreme over the (2 * reach + 1) square around each pixel that is at least `reach` from the edge."""
    for _ in range(2):
        width = 1
        while width <= 2 * reach:
            shift = min(width, 2 * reach + 1 - width)
            grey = extreme(grey[:-shift], grey[shift:])
            width += shift
        grey = grey.T
    return grey


def _strokes(ink: Floats, strong: float, floor: float) -> Mask:
    """The digit's pixels: at the lowest level at which they don't reach from edge to edge, as a paper's lines do."""
    lowest = _shape(ink, max(0.4 * strong, floor), strong)
    if not _spans(lowest):
        return lowest
    higher = (_shape(ink, max(level * strong, floor), strong) for level in (0.55, 0.7))
    return next((mask for mask in higher if not _spans(mask)), lowest)


def _spans(mask: Mask) -> bool:
    return bool(mask[0].any() and mask[-1].any()) or bool(mask[:, 0].any() and mask[:, -1].any())


def _shape(ink: Floats, level: float, strong: float) -> Mask:
    """The digit's strokes among all that is dark: the largest and what is near it and not tiny."""
    mask = ink > level
    labels, count = _components(mask)
    if count < 2:
        return mask
    there, inside = labels[mask], ink[mask]
    mass = np.bincount(there, inside, count)
    peak = np.zeros(count, np.float32)
    np.maximum.at(peak, there, inside)
    y, x = np.nonzero(mask)
    boxes = np.empty((4, count), np.intp)  # top, left, -bottom, -right
    boxes[:] = 1 << 30
    for box, place in zip(boxes, (y, x, -y, -x), strict=True):
        np.minimum.at(box, there, place)
    edges = np.stack([boxes[0] == 0, boxes[1] == 0, -boxes[2] == mask.shape[0] - 1, -boxes[3] == mask.shape[1] - 1])
    spans = (edges[0] & edges[2]) | (edges[1] & edges[3])
    worth = mass * (peak > 0.7 * strong) * np.where(spans, 0.02, np.where(edges.any(0), 0.25, 1))
    main = int(worth.argmax())
    lows, highs = boxes[:2], -boxes[2:]
    gap = np.maximum(lows - highs[:, main : main + 1], lows[:, main : main + 1] - highs).max(0)
    longer = (highs - lows)[:, main].max() + 1
    keep = (worth >= 0.06 * worth[main]) & (gap <= 0.3 * longer)
    return mask & keep[labels]


def _components(mask: Mask) -> tuple[npt.NDArray[np.intp], int]:
    """8-connected parts: for each pixel of `mask` its part's number, and how many there are."""
    height, width = mask.shape
    padded = np.zeros((height, width + 1), np.int8)
    padded[:, 1:] = mask
    starts = np.diff(padded, axis=1) == 1
    runs = starts.ravel().cumsum().reshape(height, width) - 1
    above, below = [], []
    for shift in (-1, 0, 1):
        a = slice(max(0, shift), width + min(0, shift))
        b = slice(max(0, -shift), width + min(0, -shift))
        both = mask[:-1, a] & mask[1:, b]
        above.append(runs[:-1, a][both])
        below.append(runs[1:, b][both])
    first, second = np.concatenate(above), np.concatenate(below)
    parent = np.arange(int(runs[-1, -1]) + 1)
    while True:
        low = np.minimum(parent[first], parent[second])
        new = parent.copy()
        np.minimum.at(new, parent[first], low)
        np.minimum.at(new, parent[second], low)
        new = new[new]
        if (new == parent).all():
            break
        parent = new
    names, numbers = np.unique(parent, return_inverse=True)
    return numbers[np.where(mask, runs, 0)], len(names)


def _grown(mask: Mask) -> Mask:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    mask = grown.copy()
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _fitted(ink: Floats, longer: int) -> Bytes:
    """Scaled so that the longer side becomes 20 pixels, the centre of mass in the middle."""
    y, x = _centre(ink)
    scale = BOX / longer
    if BOX - 3 <= longer <= BOX + 1:
        scale, y, x = 1.0, round(y), round(x)
    reach = (SIDE / 2) / scale
    pad = math.ceil(reach + 0.5 / scale) + 1
    left, top = (place + pad + 0.5 - 0.5 / scale - reach for place in (x, y))
    box = (left, top, left + 2 * reach, top + 2 * reach)
    small = Image.fromarray(np.pad(ink, pad)).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    fitted = np.asarray(small).clip(0, 1)
    return np.rint(255 * (_thickened(fitted) if scale < 1 else fitted)).astype(np.uint8)


_PEAK_RANK = 20
_LEAST_WIDTH = 1.5


def _thickened(ink: Floats) -> Floats:
    """Strokes too thin."""
    peak = float(np.partition(ink, -_PEAK_RANK, axis=None)[-_PEAK_RANK])
    slopes = float(np.abs(ink[1:] - ink[:-1]).sum() + np.abs(ink[:, 1:] - ink[:, :-1]).sum())
    width = 2 * float(ink.sum()) * peak / slopes
    ink = (ink / peak).clip(0, 1)
    if width < _LEAST_WIDTH:
        ink = np.maximum(ink, (_LEAST_WIDTH - width) / 2 * _widened(np.pad(ink, 1), 1, np.maximum))
    return ink


def png(pixels: Bytes) -> bytes:
    """A PNG file of (H, W) grey or (H, W, 3) RGB."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def photo(picture: Image.Image) -> Bytes:
    """(224, 224, 3) RGB: the whole picture, squeezed; one of that size is returned bit for bit."""
    picture = picture.convert("RGB")
    if picture.size != (PHOTO_SIZE, PHOTO_SIZE):
        picture = picture.resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.BICUBIC)
    return np.array(picture)


def normalised(pixels: Bytes) -> Floats:
    """(..., H, W, 3) RGB -> (..., 3, H, W), with ImageNet's mean and deviation."""
    scaled = (pixels.astype(np.float32) / 255 - _MEAN) / _DEVIATION
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))
