"""A digit is framed as MNIST frames it, whatever image it comes in."""

import gzip
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw, ImageFilter

from app import images
from app.images import Bytes, decoded, framed, framed_array, png

MNIST = Path(os.environ.get("TEST_DATA", Path(__file__).parents[4] / "shared" / "data")) / "mnist" / "MNIST" / "raw"

# Strokes in a unit square.
FOUR = [[(0.45, 0.0), (0.1, 0.6), (0.8, 0.6)], [(0.62, 0.25), (0.58, 1.0)]]
FIVE = [[(0.3, 0.05), (0.2, 0.45), (0.6, 0.45), (0.75, 0.7), (0.55, 0.95), (0.15, 0.95)], [(0.35, 0.0), (0.85, 0.0)]]
SEVEN = [[(0.1, 0.0), (0.8, 0.0), (0.4, 1.0)]]
DIGITS = [FOUR, FIVE, SEVEN]

Stroke = Sequence[tuple[float, float]]


def drawn(
    strokes: Sequence[Stroke],
    size: float = 200,
    *,
    canvas: tuple[int, int] = (400, 400),
    at: tuple[float, float] = (100, 100),
    width: float = 22,
) -> Bytes:
    """White ink on black: (H, W) grey, anti-aliased."""
    fine = Image.new("L", (canvas[0] * 2, canvas[1] * 2))
    pen = ImageDraw.Draw(fine)
    for stroke in strokes:
        points = [(2 * (at[0] + size * x), 2 * (at[1] + size * y)) for x, y in stroke]
        pen.line(points, fill=255, width=round(2 * width), joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - width, y - width, x + width, y + width), fill=255)
    return np.array(fine.reduce(2))


def distance(first: Bytes, second: Bytes) -> float:
    """Mean difference of grey levels over what is ink in either."""
    apart = np.abs(first.astype(float) - second)
    return float(apart.sum() / np.count_nonzero(np.maximum(first, second) > 25))


def centre(pixels: Bytes) -> tuple[float, float]:
    y, x = np.mgrid[:28, :28]
    return float((y * pixels).sum() / pixels.sum()), float((x * pixels).sum() / pixels.sum())


def extent(pixels: Bytes) -> int:
    rows, columns = np.nonzero(pixels > 100)
    return int(max(np.ptp(rows), np.ptp(columns))) + 1


def paper(height: int, width: int, *, shade: float, lines: int = 0, noise: float = 4, seed: int = 0) -> Bytes:
    """A photographed sheet: darker to one side and to the corners, ruled if `lines` apart."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    light = 215 * (1 - shade * x) * (1 - shade * ((x - 0.5) ** 2 + (y - 0.4) ** 2))
    if lines:
        light[np.arange(height) % lines < 2] *= 0.85
    grain = np.random.default_rng(seed).normal(0, noise, (height, width))
    sheet: Bytes = np.clip(light + grain, 0, 255).astype(np.uint8)
    return sheet


def inked(ground: Bytes, ink: Bytes, strength: float = 0.7) -> Bytes:
    """Dark ink on a ground of the same size."""
    mixed: Bytes = (ground * (1 - strength * (ink / 255))).astype(np.uint8)
    return mixed


def turned(image: Bytes, degrees: float, outside: int = 0) -> Bytes:
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BICUBIC, fillcolor=outside))


def desk(kind: str, height: int = 450, width: int = 600) -> Bytes:
    """A surface under a sheet: of one shade, grained wood or rough cloth."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width] / width
    shade = {"dark": 50, "grey": 130, "white": 250, "wood": 120, "cloth": 90}[kind] * np.ones((height, width))
    if kind == "wood":
        shade += 25 * np.sin(90 * y + 4 * np.sin(5 * x))
    if kind == "cloth":
        shade += rng.normal(0, 30, shade.shape)
    return np.clip(shade + rng.normal(0, 3, shade.shape), 0, 255).astype(np.uint8)


def on_desk(sheet: Bytes, kind: str, *, tilt: float = 0, at: tuple[int, int] = (140, 60)) -> Bytes:
    """A photograph of a sheet that lies on a desk, its left upper corner there before it is tilted."""
    ground = Image.fromarray(desk(kind))
    layer, covered = Image.new("L", ground.size), Image.new("L", ground.size)
    layer.paste(Image.fromarray(sheet), at)
    covered.paste(255, (*at, at[0] + sheet.shape[1], at[1] + sheet.shape[0]))
    layer, covered = (each.rotate(tilt, Image.Resampling.BICUBIC) for each in (layer, covered))
    ground.paste(layer, mask=covered)
    return np.asarray(ground.filter(ImageFilter.GaussianBlur(1)))


def ruled(sheet: Bytes, apart: int, *, squared: bool = False, slope: float = 0.0, shade: float = 0.3) -> Bytes:
    """A sheet with rules as dark as the pen."""
    y, x = np.mgrid[: sheet.shape[0], : sheet.shape[1]]
    line = (y + slope * x) % apart < 3
    if squared:
        line |= (x - slope * y) % apart < 3
    return np.where(line, np.minimum(sheet, shade * 215), sheet).astype(np.uint8)


@pytest.mark.parametrize("strokes", DIGITS)
def test_the_longer_side_is_twenty_pixels_and_the_centre_of_mass_the_middle(strokes: Sequence[Stroke]) -> None:
    found = framed_array(drawn(strokes))
    assert found.reason is None
    assert found.pixels.shape == (28, 28)
    assert found.pixels.dtype == np.uint8
    assert 19 <= extent(found.pixels) <= 21
    assert np.abs(np.subtract(centre(found.pixels), 14)).max() < 0.6
    assert found.pixels.max() >= 250


@pytest.mark.parametrize("strokes", DIGITS)
@pytest.mark.parametrize(("size", "most"), [(14, 70), (40, 45), (90, 45), (500, 45), (900, 45)])
def test_size_and_place_change_little(strokes: Sequence[Stroke], size: float, most: float) -> None:
    canvas = (round(1.9 * size), round(2.3 * size))
    found = framed_array(drawn(strokes, size, canvas=canvas, at=(0.7 * size, 0.3 * size), width=0.11 * size))
    assert distance(found.pixels, framed_array(drawn(strokes)).pixels) < most


@pytest.mark.parametrize("strokes", DIGITS)
def test_dark_on_light_is_framed_as_light_on_dark(strokes: Sequence[Stroke]) -> None:
    image = drawn(strokes)
    assert distance(framed_array(255 - image).pixels, framed_array(image).pixels) < 2


@pytest.mark.parametrize("strokes", DIGITS)
def test_a_framed_digit_is_framed_as_it_is(strokes: Sequence[Stroke]) -> None:
    once = framed_array(drawn(strokes)).pixels
    assert (framed_array(once).pixels == once).all()
    assert (framed_array(255 - once).pixels == once).all()
    assert (framed(decoded(png(once))).pixels == once).all()


@pytest.mark.parametrize(("down", "right"), [(-3, 2), (4, 4), (0, -4)])
def test_a_digit_moved_by_whole_pixels_comes_back_unharmed(down: int, right: int) -> None:
    once = framed_array(drawn(FOUR)).pixels
    moved = np.roll(once, (down, right), (0, 1))
    assert distance(framed_array(moved).pixels, once) < 3


@pytest.mark.parametrize(
    ("ink", "ground"),
    [
        ((200, 30, 30), (250, 250, 240)),
        ((20, 40, 160), (255, 240, 120)),
        ((0, 128, 0), (214, 0, 0)),  # of one lightness
        ((255, 255, 255), (10, 60, 30)),
        ((120, 120, 120), (150, 150, 150)),
    ],
)
def test_any_colour_is_read_on_any_other(ink: tuple[int, int, int], ground: tuple[int, int, int]) -> None:
    shape = drawn(FIVE)
    image = Image.composite(
        Image.new("RGB", (400, 400), ink), Image.new("RGB", (400, 400), ground), Image.fromarray(shape)
    )
    assert distance(framed(image).pixels, framed_array(shape).pixels) < 12


@pytest.mark.parametrize("strokes", DIGITS)
@pytest.mark.parametrize(("shade", "lines"), [(0.0, 0), (0.5, 0), (0.3, 40)])
def test_shade_noise_and_ruled_lines_of_a_photograph_are_taken_away(
    strokes: Sequence[Stroke], shade: float, lines: int
) -> None:
    ink = drawn(strokes, canvas=(600, 400), at=(300, 110), width=14)
    found = framed_array(inked(paper(400, 600, shade=shade, lines=lines), ink))
    assert found.reason is None
    assert distance(found.pixels, framed_array(ink).pixels) < 30


def test_the_dark_edge_of_a_table_is_not_taken_for_the_digit() -> None:
    ink = drawn(SEVEN, canvas=(600, 400), at=(250, 100), width=14)
    image = inked(paper(400, 600, shade=0.2), ink)
    image[:, :40] = 30
    assert distance(framed_array(image).pixels, framed_array(ink).pixels) < 30


@pytest.mark.parametrize("kind", ["dark", "grey", "wood", "cloth"])
@pytest.mark.parametrize("tilt", [0, 8, -14])
def test_the_digit_is_framed_and_not_the_sheet_that_lies_on_a_desk(kind: str, tilt: float) -> None:
    ink = drawn(FIVE, 120, canvas=(300, 320), at=(90, 100), width=12)
    image = on_desk(inked(paper(320, 300, shade=0.2), ink), kind, tilt=tilt)
    assert distance(framed_array(image).pixels, framed_array(turned(ink, tilt)).pixels) < 30


def test_a_sheet_may_be_darker_than_the_desk() -> None:
    ink = drawn(FOUR, 120, canvas=(300, 320), at=(90, 100), width=12)
    sheet = inked((paper(320, 300, shade=0.1) * 0.75).astype(np.uint8), ink)
    assert distance(framed_array(on_desk(sheet, "white", tilt=5)).pixels, framed_array(turned(ink, 5)).pixels) < 30


def test_a_blackboard_is_a_sheet() -> None:
    ink = drawn(SEVEN, 120, canvas=(300, 320), at=(90, 100), width=12)
    board = np.maximum(paper(320, 300, shade=0.1) // 5, (0.85 * ink).astype(np.uint8))
    assert distance(framed_array(on_desk(board, "wood", tilt=-4)).pixels, framed_array(turned(ink, -4)).pixels) < 30


def test_a_sheet_may_run_out_of_the_image() -> None:
    ink = drawn(FIVE, 150, canvas=(500, 420), at=(120, 130), width=14)
    image = on_desk(inked(paper(420, 500, shade=0.2), ink), "dark", tilt=6, at=(200, 90))
    assert distance(framed_array(image).pixels, framed_array(turned(ink, 6)).pixels) < 30


def test_a_thick_ring_is_no_sheet() -> None:
    y, x = np.mgrid[:200, :200] - 100
    reach = np.hypot(y / 75, x / 60)
    image = np.where((reach < 1) & (reach > 0.4), 200, 40) + np.random.default_rng(0).normal(0, 2, (200, 200))
    found = framed_array(image.astype(np.uint8)).pixels
    assert found[14, 14] < 30
    assert np.count_nonzero(found > 128) > 150


@pytest.mark.parametrize("strokes", DIGITS)
@pytest.mark.parametrize(
    ("apart", "squared", "slope"), [(70, False, 0.0), (38, False, 0.03), (45, True, 0.0), (60, True, 0.02)]
)
def test_rules_as_dark_as_the_pen_are_taken_off_and_strokes_that_cross_them_stay_whole(
    strokes: Sequence[Stroke], apart: int, squared: bool, slope: float
) -> None:
    ink = drawn(strokes, canvas=(400, 400), at=(107, 103), width=14)
    sheet = ruled(inked(paper(400, 400, shade=0.2), ink), apart, squared=squared, slope=slope)
    assert distance(framed_array(sheet).pixels, framed_array(ink).pixels) < 45


def test_a_ruled_sheet_may_lie_on_a_desk() -> None:
    ink = drawn(FIVE, 130, canvas=(300, 320), at=(85, 103), width=12)
    sheet = ruled(inked(paper(320, 300, shade=0.1), ink), 42)
    assert distance(framed_array(on_desk(sheet, "wood", tilt=2)).pixels, framed_array(turned(ink, 2)).pixels) < 30


@pytest.mark.parametrize(
    "strokes", [*DIGITS, [[(0.5, 0.0), (0.5, 1.0)]], [[(0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)]]]
)
def test_long_thin_strokes_of_a_digit_that_fills_the_image_are_no_rules(strokes: Sequence[Stroke]) -> None:
    ink = drawn(strokes, 190, canvas=(190, 200), at=(8, 5), width=4)
    assert distance(framed_array(inked(paper(200, 190, shade=0.1), ink)).pixels, framed_array(ink).pixels) < 40


def test_the_ground_may_be_striped() -> None:
    once = framed_array(drawn(FOUR)).pixels
    striped = once.copy()
    striped[:, :7], striped[:, 21:] = 255 - striped[:, :7], 255 - striped[:, 21:]
    assert distance(framed_array(striped).pixels, once) < 3


def test_specks_are_not_part_of_the_digit() -> None:
    image = drawn(FIVE)
    specked = image.copy()
    for y, x in ((10, 10), (390, 20), (30, 380), (200, 385)):
        specked[y : y + 6, x : x + 6] = 255
    assert distance(framed_array(specked).pixels, framed_array(image).pixels) < 2


def test_salt_and_pepper_are_wiped_off() -> None:
    once = framed_array(drawn(SEVEN)).pixels
    chance = np.random.default_rng(0).random((28, 28))
    salted = np.where(chance < 0.04, 255, np.where(chance > 0.96, 0, once)).astype(np.uint8)
    assert distance(framed_array(salted).pixels, once) < 60


def test_a_digit_of_two_strokes_stays_whole() -> None:
    apart = [FIVE[0], [(0.42, -0.08), (0.9, -0.08)]]
    whole, lower = framed_array(drawn(apart, width=12)), framed_array(drawn(apart[:1], width=12))
    assert distance(whole.pixels, lower.pixels) > 40
    assert 19 <= extent(whole.pixels) <= 21


@pytest.mark.parametrize("width", [1.5, 3, 6])
def test_a_thin_line_is_not_lost_when_it_is_shrunk(width: float) -> None:
    found = framed_array(255 - drawn(FOUR, 300, at=(50, 50), width=width)).pixels
    usual = framed_array(drawn(FOUR)).pixels
    assert found.max() == 255
    assert 0.6 < found.sum() / usual.sum() < 1.3
    assert np.count_nonzero((found > 60) & (usual > 60)) > 0.6 * np.count_nonzero(usual > 60)


@pytest.mark.parametrize("width", [1, 4, 60])
def test_a_bare_upright_line_stays_upright(width: int) -> None:
    image = np.zeros((400, 400), np.uint8)
    image[60:340, 180 : 180 + width] = 255
    found = framed_array(image).pixels
    assert 19 <= np.count_nonzero(found.max(1) > 100) <= 21
    assert np.count_nonzero(found.max(0) > 100) <= 6


def test_eight_pixels_are_enough() -> None:
    tiny = np.asarray(Image.fromarray(framed_array(drawn(SEVEN)).pixels).resize((8, 8), Image.Resampling.BOX))
    assert distance(framed_array(tiny).pixels, framed_array(drawn(SEVEN)).pixels) < 90


@pytest.mark.parametrize("grey", [0, 127, 255])
@pytest.mark.parametrize("size", [(1, 1), (28, 28), (300, 200), (1, 5000)])
def test_an_even_image_is_blank(grey: int, size: tuple[int, int]) -> None:
    found = framed_array(np.full(size, grey, np.uint8))
    assert found.reason == "blank image"
    assert not found.pixels.any()


def test_a_gradient_is_blank() -> None:
    assert framed_array(np.linspace(0, 255, 200).astype(np.uint8)[:, None].repeat(150, 1)).reason == "blank image"


@pytest.mark.parametrize("size", [(28, 28), (300, 200)])
def test_noise_is_no_digit(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).normal(128, 30, size).clip(0, 255).astype(np.uint8)
    assert framed_array(noise).reason == "noise without a shape"


def test_a_dot_is_no_digit() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[9:12, 9:12] = 255
    assert framed_array(image).reason == "ink too small for a digit"


def test_a_filled_square_is_no_digit() -> None:
    image = np.zeros((100, 100), np.uint8)
    image[20:80, 20:80] = 255
    assert framed_array(image).reason == "ink covers too much"


def test_the_channels_of_a_jpeg_change_little() -> None:
    stream = io.BytesIO()
    Image.fromarray(255 - drawn(FIVE)).convert("RGB").filter(ImageFilter.GaussianBlur(1)).save(
        stream, "JPEG", quality=50
    )
    assert distance(framed(decoded(stream.getvalue())).pixels, framed_array(drawn(FIVE)).pixels) < 12


@settings(deadline=None, derandomize=True, max_examples=300)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_any_image_has_a_frame(grey: Bytes) -> None:
    found = framed_array(grey)
    assert found.pixels.shape == (28, 28)
    assert found.pixels.any() == (found.reason is None)


@pytest.mark.skipif(not MNIST.is_dir(), reason="TEST_DATA names no folder with MNIST in mnist/")
@pytest.mark.parametrize(("part", "count"), [("train", 60_000), ("t10k", 10_000)])
def test_mnist_passes_bit_for_bit_light_or_dark(part: str, count: int) -> None:
    content = gzip.decompress((MNIST / f"{part}-images-idx3-ubyte.gz").read_bytes())
    digits = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)
    assert len(digits) == count
    for digit in digits:
        light, dark = framed_array(digit), framed_array(255 - digit)
        assert light.reason is dark.reason is None
        assert np.array_equal(light.pixels, digit)
        assert np.array_equal(dark.pixels, digit)


def test_a_digit_on_an_uneven_background_is_rejected() -> None:
    rng = np.random.default_rng(1)
    tiles = np.kron(rng.integers(0, 256, (9, 9), np.uint8), np.ones((20, 20), np.uint8))
    assert framed_array(tiles).reason == "no even ground around a shape"


def test_a_turned_digit_keeps_its_middle_and_comes_back() -> None:
    bar = np.zeros((1, 28, 28), np.uint8)
    bar[0, 5:23, 12:16] = 255
    left = images.turned(bar, 8)
    assert left.shape == (1, 28, 28)
    assert left.dtype == np.uint8
    columns = np.arange(28)
    ink = left[0].astype(int)
    top, bottom = (float((part * columns).sum() / part.sum()) for part in (ink[:9], ink[19:]))
    assert top < 13 < 14 < bottom  # counterclockwise: the top goes to the left
    assert np.abs(images.turned(left, -8).astype(int) - bar).mean() < np.abs(left.astype(int) - bar).mean() / 2
    assert (images.turned(bar, 0) == bar).all()


def test_a_strip_as_thin_as_a_sheet_s_edge_is_framed_as_anything() -> None:
    for height, width, down, across in ((96, 512, 18, 480), (111, 461, 12, 400), (512, 96, 480, 18)):
        image = np.full((height, width), 30, np.uint8)
        image[10 : 10 + down, :across] = 220
        assert framed_array(image).pixels.shape == (28, 28)


# what surrounds a digit in life


def outlined(strokes: Sequence[Stroke], shape: str, width: int) -> tuple[Bytes, Bytes]:
    """A digit within a rectangle or an ellipse as dark as itself, and the digit alone."""
    ink = drawn(strokes, 150, at=(135, 120), width=16)
    layer = Image.fromarray(ink)
    getattr(ImageDraw.Draw(layer), shape)((60, 60, 340, 330), outline=255, width=width)
    return np.asarray(layer), ink


@pytest.mark.parametrize("strokes", DIGITS)
@pytest.mark.parametrize("shape", ["rectangle", "ellipse"])
@pytest.mark.parametrize("width", [3, 12, 24])
def test_a_frame_or_ring_is_removed(strokes: Sequence[Stroke], shape: str, width: int) -> None:
    framed_digit, ink = outlined(strokes, shape, width)
    assert distance(framed_array(255 - framed_digit).pixels, framed_array(255 - ink).pixels) < 5


@pytest.mark.parametrize("strokes", DIGITS)
@pytest.mark.parametrize("lines", [1, 2])
def test_underlines_are_removed(strokes: Sequence[Stroke], lines: int) -> None:
    ink = drawn(strokes)
    layer = Image.fromarray(ink)
    for line in range(lines):
        ImageDraw.Draw(layer).line((80, 335 + 30 * line, 300, 338 + 30 * line), fill=255, width=12)
    assert distance(framed_array(255 - np.asarray(layer)).pixels, framed_array(255 - ink).pixels) < 5


@pytest.mark.parametrize("strokes", DIGITS)
@pytest.mark.parametrize("share", [0.5, 0.6])
def test_dashes_are_joined(strokes: Sequence[Stroke], share: float) -> None:
    ink = drawn(strokes)
    y, x = np.mgrid[:400, :400]
    dashed = np.where((x + y) % 30 < 30 * share, ink, 0).astype(np.uint8)
    assert distance(framed_array(255 - dashed).pixels, framed_array(255 - ink).pixels) < 70


@pytest.mark.parametrize("strokes", DIGITS)
@pytest.mark.parametrize("slope", [0.4, -1.0, 3.0])
def test_the_edge_of_a_shadow_may_cross_the_digit(strokes: Sequence[Stroke], slope: float) -> None:
    ink = drawn(strokes, 180, at=(110, 110), width=16)
    y, x = np.mgrid[:400, :400]
    shade = np.where(x - 200 > slope * (y - 200), 1, 0.55)
    image = (inked(paper(400, 400, shade=0.05), ink, 0.85) * shade).astype(np.uint8)
    assert distance(framed_array(image).pixels, framed_array(ink).pixels) < 45


@pytest.mark.parametrize("strokes", DIGITS)
@pytest.mark.parametrize("size", [40, 70])
def test_a_small_digit_on_a_page_is_found(strokes: Sequence[Stroke], size: int) -> None:
    ink = drawn(strokes, size, canvas=(1240, 1753), at=(900, 300), width=0.09 * size)
    page = np.random.default_rng(0).normal(250, 1, ink.shape)
    scan = (page * (1 - ink / 300)).clip(0, 255).astype(np.uint8)
    assert distance(framed_array(scan).pixels, framed_array(drawn(strokes, width=18)).pixels) < 60


@pytest.mark.parametrize(("first", "second"), [(FOUR, FIVE), (SEVEN, FOUR), (FIVE, SEVEN)])
@pytest.mark.parametrize("apart", [40, 90])
def test_several_digits_are_rejected_with_a_reason_that_says_so(
    first: Sequence[Stroke], second: Sequence[Stroke], apart: int
) -> None:
    canvas = (600, 320)
    pair = np.maximum(
        drawn(first, 180, canvas=canvas, at=(80, 60)), drawn(second, 180, canvas=canvas, at=(220 + apart, 60))
    )
    assert framed_array(255 - pair).reason == "several digits: expected one, or number=true for a number"


@pytest.mark.parametrize("strokes", DIGITS)
def test_a_bitmap_whose_ink_touches_its_edges_is_framed_whole(strokes: Sequence[Stroke]) -> None:
    ink = drawn(strokes, width=30)
    rows, columns = np.flatnonzero(ink.max(1)), np.flatnonzero(ink.max(0))
    cut = Image.fromarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    bitmap = np.where(np.asarray(cut.resize((16, 16), Image.Resampling.BOX)) > 110, 255, 0).astype(np.uint8)
    found = framed_array(bitmap)
    assert found.reason is None
    assert distance(found.pixels, framed_array(np.pad(bitmap, 20)).pixels) < 40
