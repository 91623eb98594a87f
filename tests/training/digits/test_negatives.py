"""Negatives: images without a digit of every kind and size, in two disjoint families."""

import io
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app.errors import CorpusError
from training.digits import negatives
from training.digits.drawing import CANVAS, Pose, font, on_paper, random_pose, render_character, render_strokes
from training.digits.negatives import (
    BENCHMARK_FONTS,
    BENCHMARK_NEGATIVES,
    BENCHMARK_PRINT,
    PHOTOGRAPHS,
    TRAINING_FONTS,
    TRAINING_NEGATIVES,
    TRAINING_PRINT,
    Draw,
    benchmark_negatives,
    photographs_in,
    print_of,
    training_negative,
)
from training.digits.shapes import BENCHMARK_SHAPES, HANDWRITTEN, TRAINING_SHAPES, glyph, handwritten

DRAWN = {
    **{f"training {name}": draw for name, draw in TRAINING_NEGATIVES.items()},
    **{f"benchmark {name}": draw for name, draw in BENCHMARK_NEGATIVES.items()},
}
SHAPES = {**TRAINING_SHAPES, **BENCHMARK_SHAPES}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(1)


def jpeg(level: int, size: tuple[int, int] = (60, 40)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (level, level, level)).save(stream, "JPEG")
    return stream.getvalue()


def number(kinds: dict[str, Draw], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace each kind by an image of its own number."""
    for level, kind in enumerate(kinds):
        monkeypatch.setitem(kinds, kind, partial(lambda number, rng: np.full((1, 1), number, np.uint8), level))


def share(times: int) -> object:
    return pytest.approx(times, rel=0.3)


@pytest.mark.parametrize("draw", DRAWN.values(), ids=list(DRAWN))
def test_a_negative_is_a_grey_image_whose_longer_side_has_28_to_200_pixels(
    draw: Draw, rng: np.random.Generator
) -> None:
    images = [draw(rng) for _ in range(60)]
    sides = [max(image.shape) for image in images]
    assert {image.dtype for image in images} == {np.dtype(np.uint8)}
    assert CANVAS[0] <= min(sides) < 40
    assert 130 < max(sides) <= CANVAS[1]


@pytest.mark.parametrize("draw", DRAWN.values(), ids=list(DRAWN))
def test_a_negative_is_the_generators_alone(draw: Draw) -> None:
    first, again, other = (draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


@pytest.mark.parametrize("draw", [draw for name, draw in DRAWN.items() if "blank" not in name])
def test_all_but_blanks_have_something_on_them(draw: Draw, rng: np.random.Generator) -> None:
    assert all(np.ptp(draw(rng)) >= 40 for _ in range(100))


@pytest.mark.parametrize(
    "name", ["training letters", "training print", "training glyphs", "benchmark letters", "benchmark shapes"]
)
def test_ink_is_darker_than_paper_as_well_as_lighter(name: str, rng: np.random.Generator) -> None:
    def dark_ink(image: npt.NDArray[np.uint8]) -> bool:
        edge = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]))
        return bool(edge > 127)

    counted = Counter(dark_ink(DRAWN[name](rng)) for _ in range(200))
    assert counted[True] == share(50)
    assert counted[False] == share(150)


def test_kinds_are_drawn_evenly_and_photographs_among_them_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    number(TRAINING_NEGATIVES, monkeypatch)
    kinds = range(len(TRAINING_NEGATIVES))
    without = Counter(int(training_negative(rng)[0, 0]) for _ in range(200 * len(kinds)))
    assert without == dict.fromkeys(kinds, share(200))
    having = Counter(int(training_negative(rng, [jpeg(99)])[0, 0]) for _ in range(200 * (len(kinds) + 1)))
    assert having == dict.fromkeys((*kinds, 99), share(200))


def test_the_benchmark_sends_photographs_as_they_are(rng: np.random.Generator) -> None:
    photographs = [jpeg(10), jpeg(200)]
    assert {benchmark_negatives(photographs)["photographs"](rng) for _ in range(20)} == set(photographs)


def test_a_benchmark_without_photographs_has_the_drawn_kinds_alone() -> None:
    assert benchmark_negatives([]) == BENCHMARK_NEGATIVES
    assert [*benchmark_negatives([jpeg(99)])] == [*BENCHMARK_NEGATIVES, "photographs"]


def test_the_families_share_no_typeface_and_no_shape() -> None:
    training, benchmark = (
        {font(name, 20).getname()[0] for name in names} for names in (TRAINING_FONTS, BENCHMARK_FONTS)
    )
    assert not training & benchmark
    assert not TRAINING_SHAPES.keys() & BENCHMARK_SHAPES.keys()
    assert not set(TRAINING_SHAPES.values()) & set(BENCHMARK_SHAPES.values())


def test_no_character_is_a_digit_to_the_eye_but_their_twins_in_print_are_there() -> None:
    assert not set("0123456789OoQIl|") & set(TRAINING_PRINT + BENCHMARK_PRINT)
    assert set("SsZzbgqij?") <= set(TRAINING_PRINT) & set(BENCHMARK_PRINT)


def test_a_glyph_shows_and_stays_on_its_canvas(rng: np.random.Generator) -> None:
    for _ in range(50):
        ink = render_strokes(glyph(rng), Pose(side=100, reach=30, centre=(50, 50), turn=rng.uniform(-3, 3)), 0.2)
        assert ink.max() == 255
        assert 0.005 < (ink > 127).mean() < 0.5
        assert not ink[0].any()
        assert not ink[:, -1].any()


def test_print_is_of_the_given_characters(rng: np.random.Generator) -> None:
    images = [print_of(" ", ["cmr10"], rng, bold=0.1) for _ in range(20)]
    assert all(np.ptp(image) < 100 for image in images)  # paper and its grain
    assert all(np.ptp(print_of("8", ["cmr10"], rng, bold=0.1)) > 40 for _ in range(20))


def test_the_library_photographs_are_there_and_differ() -> None:
    assert len({image.tobytes() for image in negatives.library_photographs()}) == len(PHOTOGRAPHS)


@pytest.mark.parametrize(
    ("name", "characters"),
    [*((name, TRAINING_PRINT) for name in TRAINING_FONTS), *((name, BENCHMARK_PRINT) for name in BENCHMARK_FONTS)],
)
def test_every_font_has_every_character(name: str, characters: str) -> None:
    where = Pose(side=60, reach=15, centre=(30, 30), turn=0)
    missing = render_character("\U0010fffe", font(name, 30), where, 0).tobytes()
    looks = {render_character(character, font(name, 30), where, 0).tobytes() for character in characters}
    assert missing not in looks
    assert len(looks) == len(characters)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_shows_and_stays_on_its_canvas(name: str, rng: np.random.Generator) -> None:
    for _ in range(20):
        ink = render_strokes(SHAPES[name](rng), Pose(side=100, reach=30, centre=(50, 50), turn=rng.uniform(-3, 3)), 0.2)
        assert ink.max() == 255
        assert 0.005 < (ink > 127).mean() < 0.4
        assert not ink[0].any()
        assert not ink[:, -1].any()


@pytest.mark.parametrize("way", HANDWRITTEN)
def test_a_handwritten_letter_is_more_than_one_straight_line(way: str) -> None:
    squares = [square for line in way.split("/") for square in line.split()]
    assert all(len(square) == 2 and square[0] in "abcde" and square[1] in "12345" for square in squares)
    assert len(set(squares)) >= 3


def test_no_two_handwritten_letters_are_alike(rng: np.random.Generator) -> None:
    where = random_pose(rng, 0)
    assert len({render_strokes(handwritten(rng), where, 0.2).tobytes() for _ in range(100)}) == 100


def test_a_shape_grows_with_its_reach_and_a_stroke_with_its_width() -> None:
    bar = TRAINING_SHAPES["cross"](np.random.default_rng(0))

    def ink(reach: float, width: float) -> float:
        return float(render_strokes(bar, Pose(side=100, reach=reach, centre=(50, 50), turn=0), width).mean())

    assert ink(40, 0.1) == pytest.approx(4 * ink(20, 0.1), rel=0.3)
    assert ink(40, 0.2) == pytest.approx(2 * ink(40, 0.1), rel=0.3)


def test_paper_shows_where_there_is_no_ink(rng: np.random.Generator) -> None:
    ink = np.zeros((40, 40), np.uint8)
    ink[10:30, 10:30] = 255
    for _ in range(50):
        seen = on_paper(ink, rng).astype(float)
        assert abs(seen[10:30, 10:30].mean() - seen[:10].mean()) > 50


def test_photographs_are_read_by_name_from_a_folder_as_from_a_tar(tmp_path: Path) -> None:
    folder, tar = tmp_path / "photographs", tmp_path / "photographs.tar"
    folder.mkdir()
    for name, level in (("b.jpg", 20), ("a.jpg", 10), ("c.txt", 30)):
        (folder / name).write_bytes(jpeg(level))
    with tarfile.open(tar, "w") as archive:
        for name in ("b.jpg", "a.jpg", "c.txt"):
            archive.add(folder / name, name)
    assert photographs_in(folder) == photographs_in(tar) == [jpeg(10), jpeg(20)]


def test_what_holds_no_photographs_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere: expected a folder or a tar of photographs"):
        photographs_in(tmp_path / "nowhere")
    (tmp_path / "text.tar").write_text("no tar" * 200)
    with pytest.raises(CorpusError, match=r"text\.tar: expected a folder or a tar of photographs"):
        photographs_in(tmp_path / "text.tar")
    with pytest.raises(CorpusError, match=r"expected photographs \(\*\.jpg\), found none"):
        photographs_in(tmp_path)


def test_a_part_of_a_photograph_keeps_its_levels(rng: np.random.Generator) -> None:
    whole = Image.new("L", (50, 300), 77)
    parts = [negatives.photograph_part(whole, rng) for _ in range(20)]
    assert all((part == 77).all() for part in parts)
    assert len({part.shape for part in parts}) > 5
