"""Checked decoding of six image formats to upright RGB images.

Time and memory are bounded by the shape and the bytes of a file: chunks, segments and blocks, which Pillow reads in
Python, are counted and filtered first, and a row counts as several pixels.
"""

import io
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import cv2
import numpy as np
from PIL import AvifImagePlugin, Image, ImageChops, ImageCms, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.errors import Malformed, SeqserveError, TooLarge
from app.images.file_types import found_instead

MAX_PIXELS: Final = 25_000_000
MIN_ROW: Final = 8  # pixels that a row counts as at least: Pillow needs as many bytes for it
SMALL_SIDE: Final = 64  # pixels
SMALL_BYTES: Final = 4096

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a decoder's; there is no other way to set it

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"IDAT", b"IEND"})
_PNG_ONCE = frozenset({b"PLTE", b"tRNS", b"iCCP", b"eXIf"})
_PNG_ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})
_JPEG_MARKER = re.compile(rb"(?<=\xff)[^\x00\xff]")
_JPEG_END = b"\xff\xd9"
_MAX_PARTS = 100_000  # PNG chunks or GIF blocks: an encoder writes 65,000 in 16 MiB at most
_MAX_SEGMENTS = 2_000  # of a JPEG before its image: of a colour profile and of metadata, 64 KiB each
_SEARCHED = 2**16  # bytes searched for a marker at once: about a millisecond
_MAX_SCANS = 100  # of a JPEG: encoders write about ten, and each is a pass over the whole image
_MAX_FRAMES = 50  # of an animation: to find one that is not blank
_BLANK = 8  # levels of each channel: a frame that varies no more is blank
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
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # EXIF types of at most four bytes


def decoded(
    content: bytes, *, name: str = "image", least: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return the image in `content` checked, upright and in sRGB, transparency over white.

    Of an animation it is the first frame that is not blank. Transparency is over black where the visible part is
    nearly white. With `least`, the image may be reduced by a whole factor as long as both its sides keep at least that
    many pixels. Bytes after the image's end are ignored. Raise TooLarge for more than `max_pixels`, before decoding,
    and Malformed for a damaged file or one that is no PNG, JPEG, WebP, BMP, GIF or AVIF; messages start with `name`.
    """
    form = next((form for form, (accepts, _) in _FORMATS.items() if accepts(content[:12])), None)
    if form is None:
        raise Malformed(f"{name}: expected {', '.join(_FORMATS)}, found {found_instead(content)}")
    with _as_malformed(name, form):
        image = _FORMATS[form][1](content)
        width, height = image.size
        if max(width, MIN_ROW) * height > max_pixels:
            raise TooLarge(
                f"{name}: expected at most {max_pixels} pixels, found {width} x {height}"
                + (f" (a row counts as {MIN_ROW})" if width < MIN_ROW else ""),
                hopeless=False,
            )
        frame = _with_content(form, _loaded(image, form, content, least), content)
        flat = _srgb(_flat(frame, least), image.info.get("icc_profile"))
        turn = _UPRIGHT.get(_orientation(image.info.get("exif", b"")))
        return flat if turn is None else flat.transpose(turn)


def upright_size(content: bytes) -> tuple[int, int]:
    """Return width and height of an image that `decoded` accepts, upright and not reduced."""
    form = next(form for form, (accepts, _) in _FORMATS.items() if accepts(content[:12]))
    image = _FORMATS[form][1](content)
    width, height = image.size
    return (height, width) if _orientation(image.info.get("exif", b"")) >= 5 else (width, height)


def is_small(content: bytes) -> bool:
    """Return whether the header is that of a PNG of at most SMALL_SIDE x SMALL_SIDE pixels and SMALL_BYTES bytes.

    False for a file that may cost more than its header says: with a second header, a colour profile or an animation.
    """
    return (
        len(content) <= SMALL_BYTES
        and content.startswith(_PNG)
        and content[12:16] == b"IHDR"
        and max(int.from_bytes(content[16:20]), int.from_bytes(content[20:24])) <= SMALL_SIDE
        and content.count(b"IHDR") == 1
        and b"iCCP" not in content
        and b"acTL" not in content
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


def _loaded(image: ImageFile.ImageFile, form: str, content: bytes, least: int | None) -> Image.Image:
    """Decode the first frame: run lengths of a BMP by OpenCV, since Pillow decodes them in Python.

    A JPEG may lack its end marker: then no pixel may depend on the bits after its end.
    """
    if image.tile and image.tile[0].codec_name == "bmp_rle":
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise ValueError("not enough runs")
        return Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    if least:
        image.draft(None, (least, least))
    try:
        image.load()
    except OSError:
        if form != "JPEG" or content.endswith(_JPEG_END):
            raise
        image, other = (_jpeg(content + filler + _JPEG_END) for filler in (b"", b"\x55" * 64))
        for each in (image, other):
            if least:
                each.draft(None, (least, least))
            each.load()
        if ImageChops.difference(image, other).getbbox(alpha_only=False):
            raise
    return image


def _with_content(form: str, image: Image.Image, content: bytes) -> Image.Image:
    """Return the first frame that is not blank, of a bounded number; `image`, the first, if there is none."""
    animation = _png_animation(content) if form == "PNG" else image
    if animation is None or not getattr(animation, "is_animated", False):
        return image
    first = image.copy()
    for frame in range(min(_MAX_FRAMES, MAX_PIXELS // (image.width * image.height) + 1)):
        try:
            animation.seek(frame)
            layer = animation.convert("RGBA")
        except Exception:  # noqa: BLE001  # a later frame may be missing or damaged: the first one is whole
            break
        *colours, alpha = layer.getextrema()
        if alpha != (0, 0) and any(high - low > _BLANK for low, high in (*colours, alpha)):
            return layer
    return first


def _png(content: bytes) -> ImageFile.ImageFile:
    return PngImageFile(io.BytesIO(_png_chunks(content, _PNG_CHUNKS)))


def _png_animation(content: bytes) -> ImageFile.ImageFile | None:
    """Open with its animation chunks if there are frames; Pillow warns of wrong counts of frames."""
    control = content.find(b"acTL")
    if control < 0 or content.count(b"acTL") > 1:
        return None
    (frames,) = struct.unpack_from(">I", content + bytes(8), control + 4)
    if not 1 < frames < 2**31:
        return None
    try:
        return PngImageFile(io.BytesIO(_png_chunks(content, _PNG_CHUNKS | _PNG_ANIMATION)))
    except (OSError, SyntaxError, ValueError, struct.error):
        return None


def _png_chunks(content: bytes, wanted: frozenset[bytes]) -> bytes:
    """Keep the wanted chunks, so that faults and sizes of the others can't matter, up to the image's end."""
    kept, at, seen = [content[:8]], 8, set[bytes]()
    for _ in range(_MAX_PARTS):
        if len(content) - at < 8:
            return b"".join(kept)
        (length,) = struct.unpack_from(">I", content, at)
        kind, end = content[at + 4 : at + 8], at + 12 + length
        if kind in wanted and kind not in seen:
            kept.append(content[at:end])
        if kind in _PNG_ONCE:
            seen.add(kind)
        if kind == b"IEND":
            return b"".join(kept)
        at = end
    raise ValueError(f"expected at most {_MAX_PARTS} chunks")


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Do nothing: not needed, and Pillow warns of damaged EXIF."""


def _jpeg(content: bytes) -> ImageFile.ImageFile:
    """Open with the segments that matter: tables, frame headers, JFIF, EXIF, colour profile and Adobe's transform."""
    kept, at, exif = [content[:2]], 2, False
    for _ in range(_MAX_SEGMENTS):
        found = _marker(content, at)
        if found is None or found[0] == b"\xda":  # start of scan
            break
        marker, at = found[0][0], found.end()
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:  # without a length
            continue
        (length,) = struct.unpack_from(">H", content, at)
        segment, at = content[at : at + length], at + length
        new_exif = marker == 0xE1 and segment[2:6] == b"Exif" and not exif
        exif |= new_exif
        if new_exif or marker < 0xE0 or marker in (0xE0, 0xEE) or (marker == 0xE2 and segment[2:13] == b"ICC_PROFILE"):
            kept += (bytes((0xFF, marker)), segment)
    else:
        raise ValueError(f"expected at most {_MAX_SEGMENTS} segments before the image")
    image = content[found.start() - 1 :] if found else b""
    scans = image.count(b"\xff\xda")
    if scans > _MAX_SCANS:
        raise ValueError(f"expected at most {_MAX_SCANS} scans, found {scans}")
    return _Jpeg(io.BytesIO(b"".join((*kept, image))))


def _marker(content: bytes, at: int) -> re.Match[bytes] | None:
    """Find the next marker, in parts short enough for other threads to run in between: fill bytes have no limit."""
    for start in range(at, len(content), _SEARCHED):
        if found := _JPEG_MARKER.search(content, start, start + _SEARCHED):
            return found
    return None


def _gif(content: bytes) -> ImageFile.ImageFile:
    """Open with frames and their control blocks alone, on a screen that holds the first frame.

    Pillow reads blocks in Python, gathers comments, and warns of a frame outside of the screen.
    """
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + _colours(flags)
    kept, frames, blocks = [content[6:at]], 0, 0
    while frames < _MAX_FRAMES and content[at : at + 1] not in (b";", b""):
        start, kind = at, content[at]
        if kind == 0x21:  # extension: a label, then blocks up to an empty one
            at += 2
        elif kind == 0x2C:
            left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", content, at + 1)
            right, bottom = left + frame_width, top + frame_height
            if not frames:
                width, height = max(width, right), max(height, bottom)
            elif right > width or bottom > height:
                break
            at += 11 + _colours(flags)
            frames += 1
        else:
            break
        while at < len(content) and content[at]:
            at, blocks = at + 1 + content[at], blocks + 1
            if blocks > _MAX_PARTS:
                break
        at, blocks = at + 1, blocks + 1
        if blocks > _MAX_PARTS:
            raise ValueError(f"expected at most {_MAX_PARTS} blocks")
        if kind == 0x2C or content[start + 1] == 0xF9:
            kept.append(content[start:at])
    screen = struct.pack("<HH", width, height) + kept[0][4:]
    return GifImageFile(io.BytesIO(b"".join((b"GIF89a", screen, *kept[1:]))))


def _colours(flags: int) -> int:
    """Return the bytes of the colour table that the flags of a GIF's screen or frame announce."""
    return 6 << (flags & 7) if flags & 0x80 else 0


# Pillow's readers are called by class: `Image.open` warns of a large image before its size can be rejected.
_FORMATS: dict[str, tuple[Callable[[bytes], bool], Callable[[bytes], ImageFile.ImageFile]]] = {
    "PNG": (lambda head: head.startswith(_PNG), _png),
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), _jpeg),
    "WebP": (lambda head: head.startswith(b"RIFF") and head.endswith(b"WEBP"), lambda c: WebPImageFile(io.BytesIO(c))),
    "BMP": (lambda head: head.startswith(b"BM"), lambda c: BmpImageFile(io.BytesIO(c))),
    "GIF": (lambda head: head.startswith((b"GIF87a", b"GIF89a")), _gif),
    "AVIF": (
        lambda head: head[4:12] in (b"ftypavif", b"ftypavis"),
        lambda c: AvifImagePlugin.AvifImageFile(io.BytesIO(c)),
    ),
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
    """Return the upper 8 of the bits that 16-bit grey uses (8 to 16), the transparent grey value included."""
    values = np.asarray(image)
    shift = max(int(values.max()).bit_length() - 8, 0)
    upper = Image.fromarray((values >> shift).astype(np.uint8))
    if "transparency" in image.info:
        upper.info["transparency"] = min(image.info["transparency"] >> shift, 255)
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
    for at in range(0, min(len(entries) - 11, 12 * _MAX_SEGMENTS), 12):
        tag, kind, count = struct.unpack_from(f"{order}HHI", entries, at)
        if (tag, count) == (0x0112, 1) and kind in _INTEGERS:
            return int(struct.unpack_from(f"{order}{_INTEGERS[kind]}", entries, at + 8)[0])
    return 1
