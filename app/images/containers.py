"""Readers of image files without the parts that could cost more than they matter.

Pillow reads chunks, segments and blocks in Python: they are counted and filtered first.
"""

import io
import re
import struct
from collections.abc import Callable

from PIL import AvifImagePlugin, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a decoder's; there is no other way to set it

PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"IDAT", b"IEND"})
_PNG_ONCE = frozenset({b"PLTE", b"tRNS", b"iCCP", b"eXIf"})
_PNG_ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})
_JPEG_MARKER = re.compile(rb"(?<=\xff)[^\x00\xff]")
JPEG_END = b"\xff\xd9"
_MAX_PARTS = 100_000  # PNG chunks or GIF blocks: an encoder writes 65,000 in 16 MiB at most
_MAX_SEGMENTS = 2_000  # of a JPEG before its image: of a colour profile and of metadata, 64 KiB each
_SEARCHED = 2**16  # bytes searched for a marker at once: about a millisecond
_MAX_SCANS = 100  # of a JPEG: encoders write about ten, and each is a pass over the whole image
MAX_FRAMES = 50  # of an animation: to find one that is not blank
_INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # EXIF types of at most four bytes


def png_animation(content: bytes) -> ImageFile.ImageFile | None:
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
    raise ValueError(f"expected at most {_MAX_PARTS} chunks, found more")


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Do nothing: not needed, and Pillow warns of damaged EXIF."""


def jpeg(content: bytes) -> ImageFile.ImageFile:
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
        raise ValueError(f"expected at most {_MAX_SEGMENTS} segments before the image, found more")
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
    while frames < MAX_FRAMES and content[at : at + 1] not in (b";", b""):
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
            raise ValueError(f"expected at most {_MAX_PARTS} blocks, found more")
        if kind == 0x2C or content[start + 1] == 0xF9:
            kept.append(content[start:at])
    screen = struct.pack("<HH", width, height) + kept[0][4:]
    return GifImageFile(io.BytesIO(b"".join((b"GIF89a", screen, *kept[1:]))))


def _colours(flags: int) -> int:
    """Return the bytes of the colour table that the flags of a GIF's screen or frame announce."""
    return 6 << (flags & 7) if flags & 0x80 else 0


# Pillow's readers are called by class: `Image.open` warns of a large image before its size can be rejected.
FORMATS: dict[str, tuple[Callable[[bytes], bool], Callable[[bytes], ImageFile.ImageFile]]] = {
    "PNG": (
        lambda head: head.startswith(PNG),
        lambda c: PngImageFile(io.BytesIO(_png_chunks(c, _PNG_CHUNKS))),
    ),
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), jpeg),
    "WebP": (lambda head: head.startswith(b"RIFF") and head.endswith(b"WEBP"), lambda c: WebPImageFile(io.BytesIO(c))),
    "BMP": (lambda head: head.startswith(b"BM"), lambda c: BmpImageFile(io.BytesIO(c))),
    "GIF": (lambda head: head.startswith((b"GIF87a", b"GIF89a")), _gif),
    "AVIF": (
        lambda head: head[4:12] in (b"ftypavif", b"ftypavis"),
        lambda c: AvifImagePlugin.AvifImageFile(io.BytesIO(c)),
    ),
}


def orientation(exif: bytes) -> int:
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
