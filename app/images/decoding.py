"""Checked decoding of six image formats to upright RGB images.

Time and memory are bounded by the shape and the bytes of a file: chunks, segments and blocks, which Pillow reads in
Python, are counted and filtered first, and a row counts as several pixels.
"""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Final, cast

import cv2
import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageFile

from app.errors import Malformed, SeqserveError, TooLarge
from app.images.containers import FORMATS, JPEG_END, MAX_FRAMES, PNG, jpeg, orientation, png_animation
from app.images.file_types import found_instead

MAX_PIXELS: Final = 25_000_000
MIN_ROW: Final = 8  # pixels that a row counts as at least: Pillow needs as many bytes for it
LARGE_PIXELS: Final = MAX_PIXELS // 3  # more take up to 400 MB while they are decoded, but for JPEGs,
ONE_LARGE: Final = threading.Lock()  # so one such image is at a time
SMALL_SIDE: Final = 64  # pixels
SMALL_BYTES: Final = 4096
STRIP: Final = 2**20  # pixels

_ELEMENTS = b"mpet"  # the type of colour conversions of any number of steps (ICC.1:2022, 10.16): minutes of work
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


def decoded(
    content: bytes, *, name: str = "image", least: int | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return the image in `content` checked, upright and in sRGB, transparency over white.

    Of an animation it is the first frame that is not blank. Transparency is over black where the visible part is
    nearly white. With `least`, the image may be reduced by a whole factor as long as both its sides keep at least that
    many pixels. Bytes after the image's end are ignored. Raise TooLarge for more than `max_pixels`, before decoding,
    and Malformed for a damaged file or one that is no PNG, JPEG, WebP, BMP, GIF or AVIF; messages start with `name`.
    """
    form = next((form for form, (accepts, _) in FORMATS.items() if accepts(content[:12])), None)
    if form is None:
        raise Malformed(f"{name}: expected {', '.join(FORMATS)}, found {found_instead(content)}")
    with _as_malformed(name, form):
        image = FORMATS[form][1](content)
        width, height = image.size
        if max(width, MIN_ROW) * height > max_pixels:
            raise TooLarge(
                f"{name}: expected at most {max_pixels} pixels, found {width} x {height}"
                + (f" (a row counts as {MIN_ROW})" if width < MIN_ROW else ""),
                unread=False,
            )
        with ONE_LARGE if form != "JPEG" and width * height > LARGE_PIXELS else nullcontext():
            frame = _with_content(form, _loaded(image, form, content, least), content)
            info = image.info
            del image  # and with it an animation's canvas
            flat = _srgb(_flat(frame, least), info.get("icc_profile"))
            turn = _UPRIGHT.get(orientation(info.get("exif", b"")))
            return flat if turn is None else flat.transpose(turn)


def upright_size(content: bytes) -> tuple[int, int]:
    """Return width and height of an image that `decoded` accepts, upright and not reduced."""
    form = next(form for form, (accepts, _) in FORMATS.items() if accepts(content[:12]))
    image = FORMATS[form][1](content)
    width, height = image.size
    return (height, width) if orientation(image.info.get("exif", b"")) >= 5 else (width, height)


def is_small(content: bytes) -> bool:
    """Return whether the header is that of a PNG of at most SMALL_SIDE x SMALL_SIDE pixels and SMALL_BYTES bytes.

    False for a file that may cost more than its header says: with a second header, a colour profile or an animation.
    """
    return (
        len(content) <= SMALL_BYTES
        and content.startswith(PNG)
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
        raise TooLarge(f"{name}: {error}", unread=False) from error
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
        return Image.frombytes("RGB", pixels.shape[1::-1], pixels.data, "raw", "BGR")
    if least:
        image.draft(None, (least, least))
    try:
        image.load()
    except OSError:
        if form != "JPEG" or content.endswith(JPEG_END):
            raise
        image, other = (jpeg(content + filler + JPEG_END) for filler in (b"", b"\x55" * 64))
        for each in (image, other):
            if least:
                each.draft(None, (least, least))
            each.load()
        if ImageChops.difference(image, other).getbbox(alpha_only=False):
            raise
    return image


def _with_content(form: str, image: Image.Image, content: bytes) -> Image.Image:
    """Return the first frame that is not blank, of a bounded number; `image`, the first, if there is none."""
    animation = png_animation(content) if form == "PNG" else image
    if animation is None or not getattr(animation, "is_animated", False):
        return image
    for frame in range(min(MAX_FRAMES, MAX_PIXELS // (image.width * image.height) + 1)):
        try:
            animation.seek(frame)
            layer = animation if animation.mode in ("RGB", "RGBA") else animation.convert("RGBA")
            layer.load()
        except Exception:  # noqa: BLE001  # a later frame may be missing or damaged: the first one is whole
            break
        if not _is_blank(layer):
            return layer
    image.seek(0)
    return image


def _is_blank(layer: Image.Image) -> bool:
    """Return whether RGB or RGBA is invisible or varies little; by strips, since each holds the interpreter."""
    opaque = layer.mode == "RGB"
    lows, highs = [255] * 4, [0] * 4
    rows = max(1, STRIP // layer.width)
    for top in range(0, layer.height, rows):
        strip = layer.crop((0, top, layer.width, min(top + rows, layer.height)))
        extrema = cast("tuple[tuple[int, int], ...]", strip.getextrema())  # of several channels
        for channel, (low, high) in enumerate(extrema):
            lows[channel], highs[channel] = min(lows[channel], low), max(highs[channel], high)
        if (opaque or highs[3]) and any(high - low > _BLANK for low, high in zip(lows, highs, strict=True)):
            return False
    return True


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
    """Convert to sRGB by the embedded colour profile; ignore one that is damaged, for other channels or unbounded."""
    if profile and _ELEMENTS not in profile:
        try:
            converted = ImageCms.profileToProfile(
                image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
        except ImageCms.PyCMSError:
            converted = None
        if converted is not None:
            return converted
    return image.convert("RGB")
