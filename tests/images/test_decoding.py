"""Bytes of every kind become a right image or a Malformed or TooLarge that says why."""

import contextlib
import io
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from app.errors import Malformed, TooLarge
from app.images import MAX_PIXELS, decoded, is_small
from app.images.decoding import LARGE_PIXELS, ONE_LARGE, SMALL_BYTES, SMALL_SIDE

settings.register_profile("images", deadline=None, derandomize=True, max_examples=300)
anything = settings.get_profile("images")

FORMATS = ("PNG", "JPEG", "WebP", "BMP", "GIF", "AVIF")
WHITE, BLACK, RED, GREEN, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (0, 128, 0), (0, 0, 255)
SCENE = (RED, GREEN, BLUE)


def scene(width: int = 48, height: int = 32) -> Image.Image:
    """Red above left, green above right, blue below: no turn or reflection of it is itself."""
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    return image


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def pixels(image: Image.Image) -> npt.NDArray[np.int16]:
    return np.asarray(image, np.int16)


def off(image: Image.Image, *places: tuple[int, int], colours: Sequence[tuple[int, int, int]] = SCENE) -> int:
    """Return the largest error of the colours at `places`, by default of the three parts of a scene."""
    width, height = image.size
    places = places or ((width // 4, height // 4), (3 * width // 4, height // 4), (width // 2, 3 * height // 4))
    return max(int(np.abs(pixels(image)[y, x] - colour).max()) for (x, y), colour in zip(places, colours, strict=True))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(content: bytes, kind: bytes, body: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return content[:33] + chunk(kind, body) + content[33:]


def empty_png(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def gif_header(screen: tuple[int, int], frame: tuple[int, int, int, int]) -> bytes:
    return struct.pack("<6sHHBBB", b"GIF89a", *screen, 0, 0, 0) + struct.pack("<BHHHHB", 0x2C, *frame, 0) + b"\x02\x00;"


def webp_header(width: int, height: int) -> bytes:
    canvas = struct.pack(
        "<IHBHB", 0, (width - 1) & 0xFFFF, (width - 1) >> 16, (height - 1) & 0xFFFF, (height - 1) >> 16
    )
    return b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + canvas


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_gives_the_image_in_rgb(form: str) -> None:
    found = decoded(saved(scene(), form))
    assert (found.mode, found.size) == ("RGB", (48, 32))
    assert off(found) <= 4


@pytest.mark.parametrize("form", ["TIFF", "PPM", "ICO", "TGA"])
def test_other_formats_are_rejected_and_the_message_names_those_expected(form: str) -> None:
    with pytest.raises(Malformed, match=r"part 3: expected PNG, JPEG, WebP, BMP, GIF, AVIF, found "):
        decoded(saved(scene(), form), name="part 3")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"RIFF\0\0\0\0WAVEfmt "]
)
def test_what_is_no_image_is_malformed(content: bytes) -> None:
    with pytest.raises(Malformed, match="image: expected PNG"):
        decoded(content)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WebP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_undone(form: str, orientation: int, order: str) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation)  # the inverse of each, as Pillow numbers them
    stored = scene() if undo is None else scene().transpose(Image.Transpose(undo))
    mark = b"II*\0" if order == "<" else b"MM\0*"
    tiff = mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    found = decoded(saved(stored, form, exif=exif))
    assert found.size == (48, 32)
    assert off(found) <= 4


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x09\0",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x02\0\0\0\x01\0\x06\0\0",
    ],
)
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WebP"])
def test_broken_exif_leaves_the_image_as_it_is(form: str, exif: bytes) -> None:
    assert np.abs(pixels(decoded(saved(scene(), form, exif=exif))) - pixels(decoded(saved(scene(), form)))).max() == 0


def layered(mode: str) -> Image.Image:
    """Black on the left, transparent on the right."""
    image = Image.new("LA", (8, 8), (0, 255))
    image.paste((77, 0), (4, 0, 8, 8))
    return image.convert(mode)


@pytest.mark.parametrize(
    "content",
    [
        saved(layered("LA"), "PNG"),
        saved(layered("RGBA"), "PNG"),
        saved(layered("RGBA"), "WebP", lossless=True),
        saved(layered("RGBA"), "GIF"),
        saved(layered("RGBA").quantize(4), "PNG"),
        saved(layered("LA").getchannel("L"), "PNG", transparency=77),
        saved(layered("RGBA").convert("RGB"), "PNG", transparency=(77, 77, 77)),
    ],
    ids=["grey", "colour", "webp", "gif", "palette", "grey key", "colour key"],
)
def test_transparency_lies_over_white(content: bytes) -> None:
    found = decoded(content)
    assert (found.getpixel((1, 4)), found.getpixel((6, 4))) == (BLACK, WHITE)


def test_half_transparency_is_mixed_with_white() -> None:
    assert decoded(saved(Image.new("RGBA", (4, 4), (0, 0, 255, 51)), "PNG")).getpixel((0, 0)) == (204, 204, 255)


def test_white_ink_on_nothing_can_be_seen() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (0, 0, 4, 8))
    found = decoded(saved(image, "PNG"))
    assert (found.getpixel((1, 4)), found.getpixel((6, 4))) == (WHITE, BLACK)


def test_an_empty_layer_is_white() -> None:
    assert decoded(saved(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "PNG")).getpixel((0, 0)) == WHITE


def test_sixteen_bits_of_grey_keep_their_upper_half() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)[None].repeat(4, 0)
    found = pixels(decoded(saved(Image.fromarray(ramp), "PNG")))
    assert np.abs(found[0, :, 0] - ramp[0] / 257).max() <= 1


def test_sixteen_bits_of_grey_may_have_a_transparent_one() -> None:
    content = saved(Image.fromarray(np.array([[0, 0x1234]], np.uint16)), "PNG")
    found = decoded(with_chunk(content, b"tRNS", struct.pack(">H", 0x1234)))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [BLACK, WHITE]


def test_sixteen_bit_colour_keeps_its_upper_half() -> None:
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">HHH", 0xFFFF, 0x80FF, 0x0001)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert decoded(b"\x89PNG\r\n\x1a\n" + body).getpixel((0, 0)) == (255, 128, 0)


@pytest.mark.parametrize("form", ["PNG", "BMP"])
def test_one_bit_is_black_and_white(form: str) -> None:
    image = Image.new("1", (9, 3), 1)
    image.putpixel((8, 2), 0)
    found = decoded(saved(image, form))
    assert (found.getpixel((8, 2)), found.getpixel((0, 0))) == (BLACK, WHITE)


def test_cmyk_is_not_taken_for_its_inverse() -> None:
    found = decoded(saved(scene().convert("CMYK"), "JPEG"))
    assert off(found) <= 4


@pytest.mark.parametrize("form", ["GIF", "WebP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    later = [Image.new("RGB", (48, 32), colour) for colour in (BLACK, WHITE)]
    found = decoded(saved(scene(), form, save_all=True, append_images=later))
    assert off(found) <= 4


def swapped_profile() -> bytes:
    """sRGB, but the tags that say what red and green are have changed places."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")


def test_a_colour_profile_is_followed() -> None:
    found = decoded(saved(Image.new("RGB", (4, 4), RED), "PNG", icc_profile=swapped_profile()))
    assert off(found, (0, 0), colours=[(0, 255, 0)]) <= 2


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WebP"])
@pytest.mark.parametrize(
    "profile", [b"no profile at all", swapped_profile()[:200], b"\0" * 4096, swapped_profile() + b"mpet"]
)
def test_a_broken_colour_profile_is_passed_over(form: str, profile: bytes) -> None:
    assert (pixels(decoded(saved(scene(), form, icc_profile=profile))) == pixels(decoded(saved(scene(), form)))).all()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_colour_profile_for_other_channels_is_passed_over(mode: str) -> None:
    image = scene().convert(mode)
    found = decoded(saved(image, "JPEG", icc_profile=swapped_profile()))
    assert (pixels(found) == pixels(decoded(saved(image, "JPEG")))).all()


@pytest.mark.parametrize(
    "content",
    [
        empty_png(60_000, 60_000),
        empty_png(MAX_PIXELS + 1, 1),
        gif_header((60_000, 60_000), (0, 0, 1, 1)),
        gif_header((1, 1), (0, 0, 60_000, 60_000)),
        gif_header((1, 1), (9_000, 9_000, 1, 1)),
        webp_header(16_000, 16_000),
        webp_header(12_000, 9_000),
        struct.pack("<2sIIIIiiHHIIIIII", b"BM", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
        saved(scene(), "JPEG").replace(struct.pack(">HH", 32, 48), struct.pack(">HH", 65_000, 65_000), 1),
    ],
)
def test_more_pixels_than_are_taken_are_rejected_before_any_is_decoded(content: bytes) -> None:
    tracemalloc.start()
    with pytest.raises((TooLarge, Malformed)) as refusal:
        decoded(content)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    assert refusal.type is TooLarge or content.startswith(b"RIFF")


def test_the_limit_is_counted_in_pixels_of_any_shape() -> None:
    image = Image.new("1", (1000, 10))
    assert decoded(saved(image, "PNG"), max_pixels=10_000).size == (1000, 10)
    with pytest.raises(TooLarge, match="image: expected at most 9999 pixels, found 1000 x 10"):
        decoded(saved(image, "PNG"), max_pixels=9_999)


def test_twenty_five_megapixels_in_a_single_row_are_taken() -> None:
    assert decoded(saved(Image.new("1", (MAX_PIXELS, 1), 1), "PNG")).size == (MAX_PIXELS, 1)


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_a_chunk_that_swells_does_no_harm(kind: bytes) -> None:
    swollen = zlib.compress(bytes(64 << 20))
    body = b"name\0\1\0\0\0" + swollen if kind == b"iTXt" else b"name\0\0" + swollen
    tracemalloc.start()
    try:
        found = decoded(with_chunk(saved(scene(), "PNG"), kind, body))
    except Malformed:
        assert kind == b"iCCP"
    else:
        assert found.size == (48, 32)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_broken_animation_neither_warns_nor_hides_the_image() -> None:
    content = with_chunk(saved(scene(), "PNG"), b"acTL", struct.pack(">II", 0, 0))
    assert (pixels(decoded(content)) == pixels(scene())).all()


@pytest.mark.parametrize("fill", [1, *range(2**16 - 4, 2**16 + 3), 10**6])
def test_a_jpeg_may_have_any_number_of_fill_bytes_before_a_marker(fill: int) -> None:
    stream = io.BytesIO()
    Image.linear_gradient("L").save(stream, "JPEG")
    content = stream.getvalue()
    assert decoded(content[:2] + b"\xff" * fill + content[2:]).tobytes() == decoded(content).tobytes()


def test_a_jpeg_of_endless_scans_is_rejected() -> None:
    content = saved(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    with pytest.raises(Malformed, match="expected at most 100 scans, found 1"):
        decoded(content[:-2] + last * 1000 + b"\xff\xd9")


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_anywhere_is_malformed_or_shows_the_whole_image(form: str) -> None:
    content = saved(scene(), form)
    whole = pixels(decoded(content))
    refused = 0
    for end in range(len(content)):
        try:
            assert (pixels(decoded(content[:end])) == whole).all()
        except Malformed:
            refused += 1
    assert refused > 0.8 * len(content)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_malformed(size: tuple[int, int]) -> None:
    with pytest.raises(Malformed):
        decoded(empty_png(*size))


@pytest.mark.parametrize("form", FORMATS)
def test_a_large_image_is_reduced_while_its_sides_stay_long_enough(form: str) -> None:
    found = decoded(saved(scene(1200, 1700), form), least=300)
    assert found.size == (300, 425)
    assert off(found) <= 4


@anything
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 100), st.sampled_from(["PNG", "JPEG"]))
def test_no_side_is_reduced_below_the_least(width: int, height: int, least: int, form: str) -> None:
    found = decoded(saved(Image.new("L", (width, height)), form), least=least)
    assert min(found.size) >= min(width, height, least)


def mutations() -> st.SearchStrategy[Callable[[bytes], bytes]]:
    def mutate(places: list[tuple[float, int]], cut: float) -> Callable[[bytes], bytes]:
        def mutated(content: bytes) -> bytes:
            changed = bytearray(content)
            for place, value in places:
                changed[int(place * len(changed))] = value
            return bytes(changed[: int(cut * len(changed))])

        return mutated

    place = st.floats(0, 1, exclude_max=True)
    return st.builds(
        mutate, st.lists(st.tuples(place, st.integers(0, 255)), max_size=8), st.sampled_from([1.0, 0.99, 0.5])
    )


SEEDS = [
    *(saved(scene(), form) for form in FORMATS),
    saved(layered("RGBA"), "GIF"),
    saved(layered("RGBA").quantize(4), "PNG", icc_profile=swapped_profile()),
    saved(scene(), "WebP", lossless=True, icc_profile=swapped_profile()),
    saved(scene(), "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0"),
    saved(scene().convert("CMYK"), "JPEG"),
    saved(scene().quantize(8), "BMP"),
    saved(scene(), "GIF", save_all=True, append_images=[Image.new("RGB", (48, 32))]),
]


@anything
@given(st.sampled_from(SEEDS), mutations())
def test_a_damaged_file_gives_an_image_or_is_rejected(content: bytes, mutate: Callable[[bytes], bytes]) -> None:
    try:
        found = decoded(mutate(content), max_pixels=100_000)
    except (Malformed, TooLarge):
        return
    assert found.mode == "RGB"
    assert found.width * found.height <= 100_000


@anything
@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBPVP8 ", b"BM", b"GIF89a", b""]),
    st.binary(),
)
@example(b"BM", bytes(12) + struct.pack("<I", 40) + bytes(36))
def test_noise_behind_a_right_beginning_is_rejected(magic: bytes, noise: bytes) -> None:
    with pytest.raises((Malformed, TooLarge)):
        decoded(magic + noise)


# what is small at a glance


def grey_png(width: int, height: int, *more: tuple[bytes, bytes], header: bytes = b"IHDR") -> bytes:
    """A black image; `more` chunks stand before its pixels."""
    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * height))
    chunks = [(header, size), *more, (b"IDAT", rows), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_a_digit_as_mnist_has_it_is_small() -> None:
    assert is_small(grey_png(28, 28))
    assert is_small(grey_png(SMALL_SIDE, 1))


LARGE_HEADER = (b"IHDR", struct.pack(">IIBBBBB", 4000, 4000, 8, 0, 0, 0, 0))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(grey_png(SMALL_SIDE + 1, 1), id="wide"),
        pytest.param(grey_png(1, SMALL_SIDE + 1), id="high"),
        pytest.param(grey_png(28, 28, (b"tEXt", bytes(SMALL_BYTES))), id="of many bytes"),
        pytest.param(grey_png(28, 28, LARGE_HEADER), id="with another header"),
        pytest.param(grey_png(28, 28, (b"iCCP", b"a\0\0" + zlib.compress(bytes(1000)))), id="with a colour profile"),
        pytest.param(grey_png(28, 28, header=b"tEXt"), id="without a header"),
        pytest.param(b"GIF89a" + bytes(50), id="GIF"),
        pytest.param(grey_png(28, 28)[:12], id="cut off"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_may_be_more_work_is_not_small(content: bytes) -> None:
    assert not is_small(content)


# what a file may have too much or too little of


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("tail", [bytes(5), b"\0" * 4096, b"<html>not found</html>", b"\xff" * 9])
def test_bytes_after_the_end_are_ignored(form: str, tail: bytes) -> None:
    content = saved(scene(), form)
    assert (pixels(decoded(content + tail)) == pixels(decoded(content))).all()


@pytest.mark.parametrize(("form", "marker"), [("PNG", 12), ("JPEG", 2), ("GIF", 1)])
@pytest.mark.parametrize("least", [None, 8])
def test_the_end_marker_may_be_missing(form: str, marker: int, least: int | None) -> None:
    content = saved(scene(), form)
    assert (pixels(decoded(content[:-marker], least=least)) == pixels(decoded(content, least=least))).all()


@pytest.mark.parametrize("size", [(48, 32), (400, 300)])
@pytest.mark.parametrize("cut", [3, 20, 200])
def test_a_jpeg_whose_last_rows_are_missing_is_malformed(size: tuple[int, int], cut: int) -> None:
    content = saved(scene(*size), "JPEG")
    with pytest.raises(Malformed, match="expected a whole JPEG file"):
        decoded(content[: -2 - cut])


@pytest.mark.parametrize(("kind", "letter"), [(1, "B"), (3, "H"), (4, "I"), (6, "b"), (8, "h"), (9, "i")])
@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_may_be_an_integer_of_any_type(kind: int, letter: str, order: str) -> None:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(f"{order}{letter}", 6).ljust(4, b"\0")
    exif = b"Exif\0\0" + mark + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)
    stored = scene().transpose(Image.Transpose.ROTATE_90)
    assert off(decoded(saved(stored, "JPEG", exif=exif))) <= 4


@pytest.mark.parametrize("form", ["GIF", "WebP", "PNG"])
@pytest.mark.parametrize("blank", [(255, 255, 255, 255), (0, 0, 0, 255), (0, 0, 0, 0)])
def test_of_an_animation_blank_frames_are_skipped(form: str, blank: tuple[int, int, int, int]) -> None:
    frames = [Image.new("RGBA", (48, 32), blank), scene().convert("RGBA"), Image.new("RGBA", (48, 32), RED)]
    content = saved(frames[0], form, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    assert off(decoded(content)) <= 4


@pytest.mark.parametrize("form", ["GIF", "WebP", "PNG"])
def test_an_animation_of_blank_frames_alone_gives_the_first(form: str) -> None:
    frames = [Image.new("RGB", (48, 32), colour) for colour in (WHITE, BLACK, RED)]
    content = saved(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
    assert decoded(content).getpixel((5, 5)) == WHITE


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_sixteen_bits_of_grey_may_hold_fewer(bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 64).astype(np.uint16)[None].repeat(4, 0)
    found = pixels(decoded(saved(Image.fromarray(ramp), "PNG")))
    assert np.abs(found[0, :, 0] - np.linspace(0, 255, 64)).max() <= 1


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        (b"\0\0\0\x18ftypheic" + bytes(12), "HEIC: convert it to JPEG"),
        (b"\0\0\0\x18ftypmif1" + bytes(12), "HEIC: convert it to JPEG"),
        (saved(scene(), "TIFF"), "TIFF: convert it to PNG"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG: render it to PNG"),
        (saved(scene(), "PDF"), "PDF: export its page as PNG"),
        (b"\n%PDF-1.7", "PDF: export its page as PNG"),
        (b"\xff\x0a" + bytes(20), "JPEG XL: convert it to JPEG"),
        (saved(scene(), "JPEG2000"), "JPEG 2000: convert it to PNG"),
        (b"<!DOCTYPE html><p>404", "HTML: send the image file itself"),
    ],
)
def test_known_formats_are_named_with_a_remedy(content: bytes, remedy: str) -> None:
    with pytest.raises(Malformed, match=f"image: expected PNG, JPEG, WebP, BMP, GIF, AVIF, found {remedy}"):
        decoded(content)


def test_an_avif_s_orientation_is_undone() -> None:
    stored = scene().transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert off(decoded(saved(stored, "AVIF", exif=exif.tobytes()))) <= 6


# time and memory are bounded by shape and bytes


def with_gif_blocks(content: bytes, blocks: bytes) -> bytes:
    start = 13 + (6 << (content[10] & 7))
    return content[:start] + blocks + content[start:]


def run_lengths(width: int, height: int, runs: bytes) -> bytes:
    size = 54 + 1024 + len(runs)
    header = struct.pack("<2sIIIIiiHHIIIIII", b"BM", size, 0, 1078, 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    palette = b"".join(bytes((level, level, level, 0)) for level in range(256))
    return header + palette + runs


@pytest.mark.parametrize(
    ("form", "change"),
    [
        ("PNG", lambda c: c[:33] + 1_300_000 * chunk(b"IDAT", b"") + c[33:]),
        ("PNG", lambda c: c[:33] + 1_300_000 * chunk(b"eXIf", b"") + c[33:]),
        ("JPEG", lambda c: c[:2] + 4_000_000 * b"\xff\xfe\0\2" + c[2:]),
        ("JPEG", lambda c: c[:2] + 1_500_000 * b"\xff\xe1\0\x09Exif\0\0a" + c[2:]),
        ("JPEG", lambda c: c[:2] + 16_000_000 * b"\xff" + c[2:]),
        ("GIF", lambda c: with_gif_blocks(c, b"!\xff" + 8_000_000 * b"\1a" + b"\0")),
        ("GIF", lambda c: with_gif_blocks(c, 5_000_000 * b"!\xff\0")),
        ("GIF", lambda c: with_gif_blocks(c, b"!\xfe" + 65_000 * (b"\xff" + bytes(255)) + b"\0")),
        ("GIF", lambda c: c[:-2] + 8_000_000 * b"\1\0" + c[-2:]),
    ],
)
def test_floods_of_chunks_segments_and_blocks_cost_little(form: str, change: Callable[[bytes], bytes]) -> None:
    content = change(saved(scene(), form))
    started = time.process_time()
    with contextlib.suppress(Malformed):
        assert off(decoded(content)) <= 4
    assert time.process_time() - started < 1


def test_run_lengths_are_decoded() -> None:
    found = decoded(run_lengths(4, 2, b"\4\x60\0\0\2\xff\2\0\0\1"))
    assert [found.getpixel((x, y)) for x, y in ((0, 0), (3, 0), (3, 1))] == [WHITE, BLACK, (96, 96, 96)]


def test_run_lengths_that_swell_cost_little() -> None:
    started = time.process_time()
    assert decoded(run_lengths(5000, 5000, b"\1\7\0\0" * 5000 + b"\0\1")).size == (5000, 5000)
    assert time.process_time() - started < 2


def test_a_row_counts_as_several_pixels() -> None:
    content = saved(Image.new("1", (1, 10_000)), "PNG")
    assert decoded(content, max_pixels=80_000).size == (1, 10_000)
    with pytest.raises(TooLarge, match=r"at most 79999 pixels, found 1 x 10000 \(a row counts as 8\)"):
        decoded(content, max_pixels=79_999)


def test_large_images_are_decoded_one_at_a_time() -> None:
    ended = list[str]()
    large = saved(Image.new("L", (LARGE_PIXELS // 1000 + 1, 1000)), "PNG")

    def decode() -> None:
        decoded(large)
        ended.append("large")

    with ONE_LARGE:
        waiting = threading.Thread(target=decode)
        waiting.start()
        for _ in range(5):
            decoded(saved(Image.new("L", (LARGE_PIXELS // 1000, 1000)), "PNG"))
        ended.append("others")
    waiting.join()
    assert ended == ["others", "large"]
