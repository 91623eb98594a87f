"""The robustness benchmark: images given to a reader, and metrics of its answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from app.errors import CorpusError
from app.images import decoded, framed, framed_array, png
from training.digits.corruptions import CORRUPTIONS
from training.digits.drawing import Grey
from training.digits.negatives import BENCHMARK_NEGATIVES, RawImage
from training.digits.robustness import BATCH, VARIANTS, Robustness, calibration_error, framed_image, measure, table

PHOTOGRAPHS = [png(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))]


@dataclass(frozen=True)
class FixedAnswer:
    digit: int | None
    confidence: float
    probabilities: list[float]


@dataclass
class Reader:
    """A reader that returns one answer for every image and records the images."""

    digit: int | None
    confidence: float = 0.8
    likeliest: int = 3
    shown: list[RawImage] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def __call__(self, images: list[RawImage]) -> Sequence[FixedAnswer]:
        self.shown += images
        self.batches.append(len(images))
        return [FixedAnswer(self.digit, self.confidence, np.eye(10)[self.likeliest].tolist()) for _ in images]


def digits(count: int) -> Grey:
    """Bars of different slants, framed as in MNIST; all images differ."""
    rows = np.arange(28)[:, None]
    middle = 13.5 + (rows - 13.5) * np.linspace(-0.6, 0.6, count)[:, None, None]
    ink = np.clip(3 - np.abs(np.arange(28) - middle), 0, 1)
    return np.where((rows >= 4) & (rows < 24), ink * 255, 0).astype(np.uint8)


def measured(reader: Reader, count: int = 10, limit: int | None = None, seed: int = 0) -> Robustness:
    labels = np.arange(count) % 10
    return measure(reader, digits(count), labels, PHOTOGRAPHS, limit=limit, negatives=3, seed=seed)


def test_a_reader_is_shown_every_corruption_variant_and_kind_of_negative() -> None:
    reader = Reader(3)
    found = measured(reader)
    assert found.corruptions.keys() == CORRUPTIONS.keys()
    assert found.variants.keys() == VARIANTS.keys()
    assert found.rejected.keys() == {*BENCHMARK_NEGATIVES, "photographs"}
    assert len(found.rejected) == 5
    assert len(reader.shown) == 10 * (1 + 15 + len(VARIANTS)) + 3 * 5
    assert reader.shown[-1] == PHOTOGRAPHS[0]


def test_accuracy_is_the_share_of_right_digits() -> None:
    found = measured(Reader(3))
    assert found.accuracy == pytest.approx(0.1)
    assert set(found.corruptions.values()) == set(found.variants.values()) == {0.1}
    assert found.corrupted_accuracy == found.variant_accuracy == pytest.approx(0.1)
    assert found.wrongly_rejected == found.negatives_rejected == 0


def test_a_rejected_digit_is_wrong() -> None:
    found = measured(Reader(None))
    assert found.accuracy == found.corrupted_accuracy == found.variant_accuracy == 0
    assert found.wrongly_rejected == found.negatives_rejected == 1


def test_metrics_are_means_over_their_kinds() -> None:
    found = Robustness(
        10, 4, 1, 0, 0, {"fog": 0.5, "scale": 1}, {"inverted": 0.25, "larger": 0.75}, {"noise": 1, "b": 0.5}
    )
    assert (found.corrupted_accuracy, found.variant_accuracy, found.negatives_rejected) == (0.75, 0.5, 0.75)


def test_calibration_asks_whether_the_likeliest_digit_was_right_rejected_or_not() -> None:
    assert measured(Reader(3)).calibration_error == pytest.approx(0.7)
    assert measured(Reader(None)).calibration_error == pytest.approx(0.7)
    assert measured(Reader(None, confidence=0.1)).calibration_error == pytest.approx(0)


@pytest.mark.parametrize(
    ("confidence", "right", "expected"),
    [
        ([0.9, 0.9, 0.9, 0.9], [1, 1, 1, 0], 0.15),
        ([1.0, 1.0], [1, 1], 0),
        ([1.0, 1.0], [1, 0], 0.5),
        ([0.0], [0], 0),
        ([0.91, 0.92], [1, 0], 0.415),  # one bin: the gap is of the means
        ([0.91, 0.95], [1, 0], (0.09 + 0.95) / 2),  # two bins: 14/15 lies between them
        ([14 / 15, 0.91], [1, 0], abs(1 - 14 / 15 - 0.91) / 2),  # a bin holds its upper edge
    ],
)
def test_the_calibration_error_is_guos(confidence: list[float], right: list[int], expected: float) -> None:
    assert calibration_error(confidence, np.array(right, bool)) == pytest.approx(expected)


def test_a_limit_spreads_the_digits_over_all_of_them() -> None:
    reader = Reader(3)
    assert measured(reader, count=100, limit=3).images == 3
    shown = [image.tobytes() for image in reader.shown[:3] if isinstance(image, np.ndarray)]
    assert shown == [digits(100)[place].tobytes() for place in (0, 49, 99)]
    assert measured(Reader(3), count=10, limit=1000).images == 10


def test_images_come_in_batches() -> None:
    reader = Reader(3)
    measure(reader, digits(BATCH + 1), np.zeros(BATCH + 1, int), PHOTOGRAPHS, negatives=BATCH)
    assert reader.batches == [BATCH, 1] * (1 + 15 + len(VARIANTS)) + [BATCH] * 5


def test_chance_is_the_seeds() -> None:
    first, again, other = Reader(3), Reader(3), Reader(3)
    for reader, seed in ((first, 0), (again, 0), (other, 1)):
        measured(reader, seed=seed)
    assert list(map(content, first.shown)) == list(map(content, again.shown))
    assert list(map(content, first.shown)) != list(map(content, other.shown))


def test_a_metric_does_not_depend_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, part = Reader(3), Reader(3)
    measured(whole)
    monkeypatch.delitem(CORRUPTIONS, "shot noise")
    measured(part)
    expected = [*map(content, whole.shown[:10]), *map(content, whole.shown[20:])]
    assert list(map(content, part.shown)) == expected


def test_no_digits_are_rejected() -> None:
    with pytest.raises(CorpusError, match="images: expected digits to measure with, found 0 and a limit of None"):
        measured(Reader(3), count=0)
    with pytest.raises(CorpusError, match="found 10 and a limit of 0"):
        measured(Reader(3), limit=0)


def test_without_photographs_the_drawn_kinds_are_measured_alone() -> None:
    found = measure(Reader(3), digits(2), np.arange(2), negatives=1)
    assert found.rejected.keys() == BENCHMARK_NEGATIVES.keys()


def test_the_table_says_every_metric_in_per_cent() -> None:
    found = Robustness(1234, 200, 0.99651, 0.001, 0.004, {"fog": 0.95}, {"inverted": 0.991}, {"noise": 1.0, "b": 0.9})
    lines = table(found).splitlines()
    assert "| test digits classified correctly (1,234) | 99.65 |" in lines
    assert "| test digits wrongly rejected | 0.10 |" in lines
    assert "| expected calibration error, 15 bins | 0.40 |" in lines
    assert "| MNIST-C's corruptions, mean accuracy | 95.00 |" in lines
    assert "| variants, mean accuracy | 99.10 |" in lines
    assert "| images without a digit rejected (400) | 95.00 |" in lines
    assert {"| fog | 95.00 |", "| inverted | 99.10 |", "| noise | 100.00 |", "| b | 90.00 |"} <= set(lines)


@pytest.mark.parametrize(
    "change",
    [*CORRUPTIONS.values(), *VARIANTS.values()],
    ids=[*CORRUPTIONS, *VARIANTS],
)
def test_grey_levels_are_framed_as_a_png_of_them(change: Callable[[Grey, np.random.Generator], RawImage]) -> None:
    rng = np.random.default_rng(1)
    for digit in digits(3):
        framed_as_its_png_is(change(digit, rng))


@pytest.mark.parametrize("kind", BENCHMARK_NEGATIVES)
def test_grey_negatives_are_framed_as_a_png_of_them(kind: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        framed_as_its_png_is(BENCHMARK_NEGATIVES[kind](rng))


def framed_as_its_png_is(image: RawImage) -> None:
    served = framed(decoded(image if isinstance(image, bytes) else png(image)))
    here = framed_image(image)
    assert (here.pixels == served.pixels).all()
    assert here.reason == served.reason


@pytest.mark.parametrize(
    ("name", "side"),
    [("half the size", 14), ("twice the size", 56), ("four times the size", 112), ("eight times the size", 224)],
)
def test_sizes_match_their_names(name: str, side: int) -> None:
    larger = grey(name)
    assert larger.shape == (side, side)
    assert larger.mean() == pytest.approx(digits(1)[0].mean(), rel=0.1)


def test_the_inverted_digit_is_dark_on_light() -> None:
    assert (grey("inverted") == 255 - digits(1)[0]).all()


def test_off_centre_is_30_per_cent_of_the_canvas_along_both_axes() -> None:
    canvas = grey("30 % off centre on a large canvas")
    assert canvas.shape == (112, 112)
    for axis in (0, 1):
        ink = canvas.sum(axis, dtype=float)
        off = abs(ink @ np.arange(112) / ink.sum() - 55.5)
        assert off == pytest.approx(0.3 * 112, abs=0.6)


def test_the_jpeg_is_one() -> None:
    image = VARIANTS["JPEG at quality 50"](digits(1)[0], np.random.default_rng(1))
    assert isinstance(image, bytes)
    assert image.startswith(b"\xff\xd8\xff")
    assert np.abs(np.asarray(decoded(image).convert("L"), int) - digits(1)[0]).mean() < 15


def test_the_turned_digit_keeps_its_ink_and_turns_to_either_side() -> None:
    upright = digits(3)[1]
    turned = [VARIANTS["turned by 15 degrees to either side"](upright, np.random.default_rng(n)) for n in range(9)]
    assert len({content(image) for image in turned}) == 2
    for image in turned:
        assert isinstance(image, np.ndarray)
        assert image.mean() == pytest.approx(upright.mean(), rel=0.1)
        columns = [row @ np.arange(28) / row.sum() for row in image[[9, 18]].astype(float)]
        assert abs(columns[1] - columns[0]) / 9 == pytest.approx(np.tan(np.radians(15)), abs=0.05)


def test_a_digit_in_mnists_form_is_framed_as_it_is() -> None:
    assert (framed_array(digits(3)[1]).pixels == digits(3)[1]).all()


def content(image: RawImage) -> bytes:
    return image if isinstance(image, bytes) else image.tobytes()


def grey(variant: str) -> Grey:
    image = VARIANTS[variant](digits(1)[0], np.random.default_rng(1))
    assert isinstance(image, np.ndarray)
    return image
