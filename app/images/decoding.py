"""Checked decoding of five image formats to upright RGB images."""

import io
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from PIL import Image, ImageCms, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.errors import Malformed, SeqserveError, TooLarge

MAX_PIXELS: Final = 25_000_000
SMALL_SIDE: Final = 64  # pixels
SMALL_BYTES: Final = 4096

_PNG = b"\x89PNG\r\n\x1a\n"

_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"IDAT", b"IEND"})
_MAX_SCANS = 100  # of a JPEG: encoders write about ten, and each is a pass over the whole image
_NEARLY_WHITE = 224
_UPRIGHT = {  # EXIF orientation -> transform that undoes it
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
    """Return the image in `content` checked, upright and in sRGB: its first frame, transparency over white.

    Transparency is over black where the visible part is nearly white. With `least`, the image may be reduced by a whole
    factor as long as both its sides keep at least that many pixels. Raise TooLarge for more than `max_pixels`, before
    decoding, and Malformed for a damaged file or one that is no PNG, JPEG, WebP, BMP or GIF; messages start with
    `name`.
    """
    form = next((form for form, (accepts, _) in _FORMATS.items() if accepts(content[:12])), None)
    if form is None:
        found = f"a file that starts with the bytes {content[:12].hex(' ')}" if content else "nothing"
        raise Malformed(f"{name}: expected {', '.join(_FORMATS)}, found {found}")
    with _as_malformed(name, form):
        if form == "GIF":
            _check_size(name, _gif_size(content), max_pixels)
        image = _FORMATS[form][1](content)
        _check_size(name, image.size, max_pixels)
        if least:
            image.draft(None, (least, least))
        image.load()
        flat = _srgb(_flat(image, least), image.info.get("icc_profile"))
        turn = _UPRIGHT.get(_orientation(image.info.get("exif", b"")))
        return flat if turn is None else flat.transpose(turn)


def is_small(content: bytes) -> bool:
    """Return whether the header is that of a PNG of at most SMALL_SIDE x SMALL_SIDE pixels and SMALL_BYTES bytes.

    False for a file that may cost more than its header says: with a second header or a colour profile.
    """
    return (
        len(content) <= SMALL_BYTES
        and content.startswith(_PNG)
        and content[12:16] == b"IHDR"
        and max(int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) <= SMALL_SIDE
        and content.count(b"IHDR") == 1
        and b"iCCP" not in content
    )


@contextmanager
def _as_malformed(name: str, form: str) -> Iterator[None]:
    """Raise Malformed for any exception that Pillow raises on a damaged file."""
    try:
        yield
    except SeqserveError:
        raise
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{name}: {error}", hopeless=False) from error
    except Exception as error:  # Pillow's decoders share no narrower base class of errors
        reason = str(error) or type(error).__name__
        raise Malformed(f"{name}: expected a whole {form} file, found one that can't be decoded: {reason}") from error


def _check_size(name: str, size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise TooLarge(f"{name}: expected at most {max_pixels} pixels, found {size[0]} x {size[1]}", hopeless=False)


def _png(content: bytes) -> ImageFile.ImageFile:
    """Open without text and animation chunks, so that their faults and sizes can't matter."""
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
        """Do nothing: not needed, and Pillow warns of damaged EXIF."""


def _jpeg(content: bytes) -> ImageFile.ImageFile:
    scans = content.count(b"\xff\xda")
    if scans > _MAX_SCANS:
        raise ValueError(f"expected at most {_MAX_SCANS} scans, found {scans}")
    return _Jpeg(io.BytesIO(content))


def _gif_size(content: bytes) -> tuple[int, int]:
    """Return the size of screen and first frame together; Pillow computes it only while opening, with a warning."""
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


# Pillow's readers are called by class: `Image.open` warns of a large image before its size can be rejected.
_FORMATS: dict[str, tuple[Callable[[bytes], bool], Callable[[bytes], ImageFile.ImageFile]]] = {
    "PNG": (lambda head: head.startswith(_PNG), _png),
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), _jpeg),
    "WebP": (lambda head: head.startswith(b"RIFF") and head.endswith(b"WEBP"), lambda c: WebPImageFile(io.BytesIO(c))),
    "BMP": (lambda head: head.startswith(b"BM"), lambda c: BmpImageFile(io.BytesIO(c))),
    "GIF": (lambda head: head.startswith((b"GIF87a", b"GIF89a")), lambda c: GifImageFile(io.BytesIO(c))),
}


def _flat(image: Image.Image, least: int | None) -> Image.Image:
    """Return L, RGB or CMYK of 8 bits a channel, without transparency, reduced as far as `least` allows."""
    if image.mode.startswith("I"):  # 16 bits of grey
        image = _eight_bits(image)
    if image.has_transparency_data:
        return _over_ground(_reduced(image if image.mode == "RGBA" else image.convert("RGBA"), least))
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return _reduced(image, least)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return the upper 8 bits of 16-bit grey, the transparent grey value included."""
    upper = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        upper.info["transparency"] = image.info["transparency"] >> 8
    return upper


def _reduced(image: Image.Image, least: int | None) -> Image.Image:
    factor = min(image.size) // least if least else 1
    return image.reduce(factor) if factor > 1 else image


def _over_ground(layer: Image.Image) -> Image.Image:
    alpha = layer.getchannel("A")
    seen = layer.convert("L").histogram(alpha)
    ground = Image.new("RGB", layer.size, "white" if any(seen[:_NEARLY_WHITE]) or not any(seen) else "black")
    ground.paste(layer, mask=alpha)
    return ground


def _srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB by the embedded colour profile; ignore one that is damaged or for other channels."""
    if profile:
        try:
            converted = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except ImageCms.PyCMSError:
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")


def _orientation(exif: bytes) -> int:
    """Return EXIF tag 0x0112 of the first directory; 1, upright, if it can't be read. Pillow's reader would warn."""
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
