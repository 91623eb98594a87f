"""From bytes to what a model sees: checked decoding, the framing of digits, the framing of photographs.

    bytes --decoded--> RGB picture --framed--> (28, 28) grey digit, framed as MNIST's are
                                   --photo---> (224, 224, 3) RGB --normalised--> (3, 224, 224) floats

Training, evaluation and the server call these same functions.
"""

import io
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

from app.errors import Malformed, SeqserveError, TooLarge

Bytes: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]

MAX_PIXELS: Final = 25_000_000
PHOTO_SIZE: Final = 224

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's, of red, green and blue from 0 to 1
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)

_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"IDAT", b"IEND"})
_MAX_SCANS = 100  # of a JPEG: encoders write about ten, and each is a pass over the whole picture
_NEARLY_WHITE = 224
_UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decoded(
    content: bytes, *, name: str = "image", least: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The checked, upright RGB picture in `content`: its first frame, in sRGB, transparency over white.

    Where all that can be seen is itself nearly white, transparency is over black. With `least`, the picture may be
    reduced by a whole factor as long as both its sides stay at least that many pixels. Raise TooLarge for more than
    `max_pixels`, before any is decoded, and Malformed for what is no PNG, JPEG, WebP, BMP or GIF, or is damaged;
    `name` is what their messages call it.
    """
    form = next((form for form, (accepts, _) in _FORMATS.items() if accepts(content[:12])), None)
    if form is None:
        found = f"a file that begins with the bytes {content[:12].hex(' ')}" if content else "nothing"
        raise Malformed(f"{name}: expected {', '.join(_FORMATS)}, found {found}")
    with _told(name, form):
        if form == "GIF":
            _check_size(name, _gif_size(content), max_pixels)
        picture = _FORMATS[form][1](content)
        _check_size(name, picture.size, max_pixels)
        if least:
            picture.draft(None, (least, least))
        picture.load()
        flat = _srgb(_flat(picture, least), picture.info.get("icc_profile"))
        turn = _UPRIGHT.get(_orientation(picture.info.get("exif", b"")))
        return flat if turn is None else flat.transpose(turn)


@contextmanager
def _told(name: str, form: str) -> Iterator[None]:
    """Tell whatever a damaged file leads Pillow to raise as Malformed."""
    try:
        yield
    except SeqserveError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{name}: {error}", hopeless=False) from error
    except Exception as error:  # a reader may stumble anywhere, so its errors share no base but this
        reason = str(error) or type(error).__name__
        raise Malformed(f"{name}: expected a whole {form} file, found one that can't be decoded: {reason}") from error


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise TooLarge(f"{name}: expected at most {max_pixels} pixels, found {size[0]} x {size[1]}", hopeless=False)


def _png(content: bytes) -> ImageFile.ImageFile:
    """Opened without its texts and its animation, whose flaws and sizes then can't matter."""
    kept, at = [content[:8]], 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        end = at + 12 + length
        if content[at + 4 : at + 8] in _PNG_CHUNKS:
            kept.append(content[at:end])
        at = end
    return PngImageFile(io.BytesIO(b"".join(kept)))


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Not needed, and it warns of EXIF that is damaged."""


def _jpeg(content: bytes) -> ImageFile.ImageFile:
    scans = content.count(b"\xff\xda")
    if scans > _MAX_SCANS:
        raise ValueError(f"expected at most {_MAX_SCANS} scans, found {scans}")
    return _Jpeg(io.BytesIO(content))


def _gif_size(content: bytes) -> tuple[int, int]:
    """What holds the screen and the first frame, which Pillow adds up only while opening, with a warning."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + (6 << (flags & 7) if flags & 0x80 else 0)
    while content[at] == 0x21:  # extensions: a label, then blocks up to an empty one
        at += 2
        while content[at]:
            at += 1 + content[at]
        at += 1
    if content[at] != 0x2C:
        raise ValueError(f"expected a frame at byte {at}, found {content[at]:#04x}")
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", content, at + 1)
    return max(width, left + frame_width), max(height, top + frame_height)


# Pillow's readers are called by class: `Image.open` warns of a large image before its size can be refused.
_FORMATS: dict[str, tuple[Callable[[bytes], bool], Callable[[bytes], ImageFile.ImageFile]]] = {
    "PNG": (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), _png),
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), _jpeg),
    "WebP": (lambda head: head.startswith(b"RIFF") and head.endswith(b"WEBP"), lambda c: WebPImageFile(io.BytesIO(c))),
    "BMP": (lambda head: head.startswith(b"BM"), lambda c: BmpImageFile(io.BytesIO(c))),
    "GIF": (lambda head: head.startswith((b"GIF87a", b"GIF89a")), lambda c: GifImageFile(io.BytesIO(c))),
}


def _flat(picture: Image.Image, least: int | None) -> Image.Image:
    """L, RGB or CMYK of 8 bits a channel, without transparency, reduced as far as `least` allows."""
    if picture.mode.startswith("I"):  # 16 bits of grey
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        return _over_ground(_reduced(picture if picture.mode == "RGBA" else picture.convert("RGBA"), least))
    if picture.mode not in ("L", "RGB", "CMYK"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    return _reduced(picture, least)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Of 16 bits of grey the upper ones; the grey that means transparent goes with them."""
    upper = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if "transparency" in picture.info:
        upper.info["transparency"] = picture.info["transparency"] >> 8
    return upper


def _reduced(picture: Image.Image, least: int | None) -> Image.Image:
    factor = min(picture.size) // least if least else 1
    return picture.reduce(factor) if factor > 1 else picture


def _over_ground(layer: Image.Image) -> Image.Image:
    alpha = layer.getchannel("A")
    seen = layer.convert("L").histogram(alpha)
    ground = Image.new("RGB", layer.size, "white" if any(seen[:_NEARLY_WHITE]) or not any(seen) else "black")
    ground.paste(layer, mask=alpha)
    return ground


def _srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """RGB as the embedded colour profile means it; one that is damaged or for other channels means nothing."""
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                picture, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except ImageCms.PyCMSError:
            converted = None
        if converted is not None:
            return converted
    return picture.convert("RGB")


def _orientation(exif: bytes) -> int:
    """Tag 0x0112 of the first directory; 1, upright, if none can be read. Pillow's reader warns where this does not."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    entries = tiff[start + 2 :]
    for at in range(0, len(entries) - 9, 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", entries, at)
        if (tag, kind, count) == (0x0112, 3, 1):
            return int(value)
    return 1


SIDE: Final = 28  # of a framed digit, in pixels
BOX: Final = 20  # of its ink: the longer side

_WORKING_SIDE = 512  # a larger picture is shrunk before anything is computed
_COARSE_SIDE = 192  # the ground is smooth
_STROKE = 0.4  # of the strongest ink: what is part of a stroke
_LEAST_CONTRAST = 8  # grey levels
_PEAK = 12  # the rank of the pixel that is made white when strokes are brought to full strength
_LEAST_WIDTH = 1.5  # of a stroke in a framed digit, in pixels; 13 in 100 of MNIST's are thinner


@dataclass(frozen=True)
class Framed:
    """A digit framed as MNIST's are, and why there is none to be seen, if so."""

    pixels: Bytes  # (28, 28), ink light on black
    reason: str | None


def framed(picture: Image.Image) -> Framed:
    """Frame a picture of one digit in any colour on any other; see `framed_array`."""
    return framed_array(_grey(np.asarray(_shrunk(picture).convert("RGB"))))


def framed_array(grey: Bytes) -> Framed:
    """Frame a grey picture (H, W) of one digit, light on dark or dark on light.

    As in MNIST (Y. LeCun, C. Cortes, C. J. C. Burges) the ground is black, the strongest ink white, the ink's longer
    side 20 pixels, and its centre of mass the pixel (14, 14) of 28x28. What is so already, or is so inverted, is
    returned bit for bit. Shades, stripes, specks and ruled lines of the ground are taken away; strokes too thin to be
    shrunk are widened. `reason` is given where surely no digit is.
    """
    for candidate in (grey, 255 - grey) if grey.shape == (SIDE, SIDE) else ():
        if _is_framed(candidate):
            return Framed(candidate, None)
    if max(grey.shape) > _WORKING_SIDE:
        grey = np.asarray(_shrunk(Image.fromarray(grey)))
    ink, noise = _ink(grey)
    strong = _strongest(ink)
    if strong > 4 * noise and _speckled(ink > _STROKE * strong):
        ink, noise = _ink(np.asarray(Image.fromarray(grey).filter(ImageFilter.MedianFilter(3))))
        strong = _strongest(ink)
    if strong < max(_LEAST_CONTRAST, 4 * noise):
        return _refused("blank image" if strong < _LEAST_CONTRAST else "noise without a shape")
    return _reframed(ink, _strokes(ink, max(_STROKE * strong, 2.5 * noise)), 2.5 * noise)


def _reframed(ink: Floats, strokes: Mask, floor: float) -> Framed:
    top, bottom, left, right = _extent(strokes)
    longer = max(bottom - top, right - left)
    if longer < 4:
        return _refused("ink too small for a digit")
    if np.count_nonzero(strokes) > 0.92 * longer * longer:
        return _refused("ink covers too much")
    soft = ((ink - floor) / (_strongest(ink[strokes]) - floor)).clip(0, 1)
    soft[_near(strokes) == 0] = 0
    return Framed(_fitted(soft, longer), None)


def _refused(reason: str) -> Framed:
    return Framed(np.zeros((SIDE, SIDE), np.uint8), reason)


def _shrunk(picture: Image.Image) -> Image.Image:
    factor = math.ceil(max(picture.size) / _WORKING_SIDE)
    return picture.reduce(factor) if factor > 1 else picture


def _grey(pixels: Bytes) -> Bytes:
    """(H, W, 3) -> (H, W), along the line of colours on which the picture differs most from its edge."""
    if (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    away = pixels.reshape(-1, 3) - np.median(_edge(pixels), axis=0).astype(np.float32)
    axis = np.linalg.eigh(away.T @ away)[1][:, -1]
    along = away @ (axis if axis.sum() >= 0 else -axis)
    low, high = along.min(), along.max()
    grey: Bytes = np.rint((along - low) * (255 / max(high - low, 255))).astype(np.uint8)
    return grey.reshape(pixels.shape[:2])


def _edge(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The outermost pixels of (H, W, ...)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def _is_framed(grey: Bytes) -> bool:
    """Whether (28, 28) is as in MNIST, where this is true of all."""
    if grey.max() < 192:
        return False
    top, bottom, left, right = _extent(grey > 0)
    y, x = _centre(grey)
    return BOX - 2 <= max(bottom - top, right - left) <= BOX and abs(y - SIDE / 2) <= 1 and abs(x - SIDE / 2) <= 1


def _extent(mask: Mask) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of what is true, ends excluded."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _centre(ink: npt.NDArray[Any]) -> tuple[float, float]:
    """The centre of mass, (y, x), in pixels; the middle of the first pixel is 0."""
    rows, columns = ink.sum(1, dtype=np.float64), ink.sum(0, dtype=np.float64)
    total = rows.sum()
    return float(rows @ np.arange(len(rows)) / total), float(columns @ np.arange(len(columns)) / total)


def _middle(values: Floats) -> float:
    """The upper median, of some rows if there are many."""
    some = values[:: 1 + values.size // 2**15]
    return float(np.partition(some, some.size // 2, axis=None)[some.size // 2])


def _strongest(ink: Floats) -> float:
    """A value that a few pixels reach."""
    rank = min(ink.size, max(8, ink.size // 2000))
    upper = ink[ink > ink.max() / 2]  # most often there are enough, and few to be sorted
    some = upper if upper.size >= rank else ink
    return float(np.partition(some, some.size - rank, axis=None)[-rank])


def _speckled(mask: Mask) -> bool:
    """Whether many pixels stand alone."""
    return int(np.count_nonzero(mask & (_near(mask) == 1))) > max(5, mask.size // 2000)


def _near(mask: Mask) -> Bytes:
    """How many of the nine pixels in and around each are true."""
    padded = _surrounded(mask.view(np.uint8), 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    counts: Bytes = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return counts


def _surrounded(values: npt.NDArray[Any], by: int) -> npt.NDArray[Any]:
    """(H, W) with zeros around it, so many on each side. `np.pad` does the same, but slowly for small arrays."""
    padded = np.zeros((values.shape[0] + 2 * by, values.shape[1] + 2 * by), values.dtype)
    padded[by:-by, by:-by] = values
    return padded


def _ink(pixels: Bytes) -> tuple[Floats, float]:
    """Contrast (H, W) with the ground, positive where there is ink, and its noise (a standard deviation).

    The ground is plain, banded or shaded, whichever explains the picture.
    """
    grey = pixels.astype(np.float32)
    edge = np.sort(_edge(grey))
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
    return min(1.05 * _middle(steps) if steps.size else 0.0, 1.5 * _middle(np.abs(ink)))


def _sign(away: Floats) -> float:
    return 1.0 if float((away * away * away).sum()) >= 0 else -1.0


def _banded(grey: Floats) -> Floats:
    """Contrast with the ends of each column, whichever is lighter."""
    away: Floats = np.abs(grey - (grey[0] + grey[-1]) / 2)
    return away


def _between(ink: Floats) -> float:
    """How far the pixels are from being either ground or ink: 0 if all are, 0.5 if none is."""
    strong = max(_strongest(ink), 1e-6)
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
    wiped = _extremes(np.pad(sign * coarse, reach, mode="edge"), reach, np.minimum)
    wiped = _extremes(np.pad(wiped, reach, mode="reflect", reflect_type="odd"), reach, np.maximum)
    ground = np.asarray(Image.fromarray(sign * wiped).resize(size, Image.Resampling.BILINEAR))
    away: Floats = sign * (grey - ground)
    if sign < 0:
        away *= 255 / np.maximum(ground, 16)  # ink takes a share of the light, and there is less of it in the shade
    away -= _middle(away)
    return away


def _extremes(grey: Floats, reach: int, extreme: Callable[[Floats, Floats], Floats]) -> Floats:
    """The extreme over each square of 2 * `reach` + 1 pixels within (H, W): (H - 2 * reach, W - 2 * reach)."""
    for _ in range(2):
        width = 1
        while width <= 2 * reach:
            shift = min(width, 2 * reach + 1 - width)
            grey = extreme(grey[:-shift], grey[shift:])
            width += shift
        grey = grey.T
    return grey


def _strokes(ink: Floats, level: float) -> Mask:
    """Of the parts above `level` the one of most ink, and those near it that are not small."""
    mask = ink > level
    labels, count = _parts(mask)
    if count < 2:
        return mask
    there, inside = labels[mask], ink[mask]
    lows, highs = _boxes(mask, there, count)
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


def _boxes(mask: Mask, labels: npt.NDArray[np.intp], count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The first and the last row and column of each part: two of (2, count)."""
    lows = np.full((2, count), max(mask.shape))
    highs = np.zeros((2, count), np.intp)
    for low, high, places in zip(lows, highs, np.nonzero(mask), strict=True):
        np.minimum.at(low, labels, places)
        np.maximum.at(high, labels, places)
    return lows, highs


def _parts(mask: Mask) -> tuple[npt.NDArray[np.intp], int]:
    """The connected parts (corners connect): their numbers (H, W), of no meaning outside of `mask`, and their count.

    Runs of a row are joined with those they touch in the next, all at once: each takes the lowest number among its
    neighbours until none changes.
    """
    padded = np.zeros((mask.shape[0], mask.shape[1] + 1), np.int8)
    padded[:, 1:] = mask
    runs = (np.diff(padded, axis=1) == 1).cumsum().reshape(mask.shape) - 1
    upper, lower = (np.concatenate(ends) for ends in zip(*_touching(mask, runs), strict=True))
    lowest = np.arange(int(runs[-1, -1]) + 1)
    while True:
        both = np.minimum(lowest[upper], lowest[lower])
        joined = lowest.copy()
        np.minimum.at(joined, lowest[upper], both)
        np.minimum.at(joined, lowest[lower], both)
        joined = joined[joined]
        if (joined == lowest).all():
            break
        lowest = joined
    names, numbers = np.unique(lowest, return_inverse=True)
    return numbers[np.where(mask, runs, 0)], len(names)


def _touching(mask: Mask, runs: npt.NDArray[np.intp]) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """The runs above and below wherever two touch: straight down, and to both sides."""
    width = mask.shape[1]
    for shift in (-1, 0, 1):
        above, below = (slice(max(0, s), width + min(0, s)) for s in (shift, -shift))
        both = mask[:-1, above] & mask[1:, below]
        yield runs[:-1, above][both], runs[1:, below][both]


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
    small = Image.fromarray(_surrounded(ink, pad)).resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)
    fitted = np.asarray(small).clip(0, 1)
    return np.rint(255 * (_widened(fitted) if scale < 1 else fitted)).astype(np.uint8)


def _widened(ink: Floats) -> Floats:
    """Strokes that shrinking made faint or thin brought to full strength and to the least width."""
    peak = float(np.partition(ink, -_PEAK, axis=None)[-_PEAK])
    slopes = float(np.abs(ink[1:] - ink[:-1]).sum() + np.abs(ink[:, 1:] - ink[:, :-1]).sum())
    width = 2 * peak * float(ink.sum()) / slopes  # a stroke of length l and height p has 2lp of slopes
    full: Floats = (ink / peak).clip(0, 1)
    if width < _LEAST_WIDTH:
        full = np.maximum(full, 0.4 * (_LEAST_WIDTH - width) * _extremes(_surrounded(full, 1), 1, np.maximum))
    return full


def png(pixels: Bytes) -> bytes:
    """A PNG file of (H, W) grey or (H, W, 3) RGB."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def photo(picture: Image.Image) -> Bytes:
    """(224, 224, 3) RGB: the whole picture, squeezed; one of that size already is returned bit for bit."""
    picture = picture.convert("RGB")
    if picture.size != (PHOTO_SIZE, PHOTO_SIZE):
        picture = picture.resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.BICUBIC)
    return np.array(picture)


def normalised(pixels: Bytes) -> Floats:
    """(..., H, W, 3) RGB -> (..., 3, H, W) with ImageNet's mean and deviation."""
    scaled = (pixels.astype(np.float32) / 255 - _MEAN) / _DEVIATION
    return np.ascontiguousarray(np.moveaxis(scaled, -1, -3))
