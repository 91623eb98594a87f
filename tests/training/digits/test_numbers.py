"""Numbers: composed from one seed, found on an image, trained, exported with the module's logits, published, served."""

import base64
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from app import bundle as bundles
from app.images import Strip, number_strip, png
from app.models.numbers import NumberReader
from app.models.recurrent import Cell
from app.runtime.ctc import Floats
from app.runtime.families.numbers import Number, NumbersPredictor, ReadNumber
from app.runtime.loading import load_predictor
from app.runtime.onnx_session import Precision, session
from app.runtime.predictor import answer_all
from tests import drawn_digits
from training.digits.composing import Pixels
from training.digits.number_export import export_numbers
from training.digits.number_publish import publish
from training.digits.number_recipe import NumbersConfig, ctc_loss, train
from training.digits.numbers import NONE, composed_number, number_image, training_strips
from training.run import Run

SMALL = NumbersConfig(hidden_sizes=(12, 8), samples=24, batch_size=8)
DIGITS = drawn_digits.digits(40, seed=3)


@pytest.mark.parametrize("length", [1, 5, 12])
@pytest.mark.parametrize("touching", [True, False])
def test_a_composed_number_depends_on_the_seed_alone(length: int, touching: bool) -> None:
    first, same, other = (
        composed_number(DIGITS, length, np.random.default_rng(seed), touching=touching) for seed in (1, 1, 2)
    )
    assert len(first[1]) == length
    assert first[1] == same[1]
    assert np.array_equal(first[0], same[0])
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_touching_digits_leave_fewer_columns_without_ink() -> None:
    def clear(touching: bool) -> float:
        made = (composed_number(DIGITS, 6, np.random.default_rng(seed), touching=touching)[0] for seed in range(8))
        inked = [np.flatnonzero(ink.max(0) > 0.4) for ink in made]
        return float(np.mean([1 - len(columns) / (np.ptp(columns) + 1) for columns in inked]))

    assert clear(touching=True) < clear(touching=False)


@pytest.mark.parametrize("length", [1, 4, 12])
def test_a_number_s_row_is_found_on_its_image(length: int) -> None:
    image, _ = number_image(DIGITS, length, np.random.default_rng(length), touching=False)
    strip = number_strip(Image.fromarray(image))
    assert strip.reason is None
    assert strip.pixels.shape[0] == 28
    assert strip.pixels.shape[1] % 2 == 0
    left, top, width, height = strip.box(0, strip.pixels.shape[1])
    ink = np.abs(image.astype(int) - int(np.median(image))) > 60
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    expected = (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)
    assert np.abs(np.subtract((left, top, width, height), expected)).max() <= 0.1 * max(height, 10) + 3


def test_a_blank_image_has_no_row() -> None:
    assert number_strip(Image.new("L", (300, 100), 255)).reason == "blank image"


BARS = range(80, 560, 40)  # their left ends


@given(
    arrays.arrays(np.uint8, st.tuples(st.integers(1, 60), st.integers(1, 120)), elements=st.sampled_from([0, 90, 255]))
)
@settings(deadline=None, derandomize=True, max_examples=200)
def test_any_image_has_a_strip_or_a_reason(grey: Pixels) -> None:
    answer = Sure(None, 1.0, precision="fp32").read(number_strip(Image.fromarray(grey)))
    assert (answer.number is None) == (answer.reason is not None) == (not answer.digits)
    height, width = grey.shape
    for digit in answer.digits:
        left, top, wide, high = digit.box
        assert -1 <= left < left + wide <= width + 1
        assert -1 <= top < top + high <= height + 1


def row_of_bars(slope: float = 0.0) -> Pixels:
    """Twelve bars of 12 x 60 pixels, 40 apart, on light paper (300, 640); the row falls by `slope`."""
    image = np.full((300, 640), 240, np.uint8)
    for left in BARS:
        top = round(120 + slope * left)
        image[top : top + 60, left : left + 12] = 20
    return image


@pytest.mark.parametrize("slope", [-0.15, 0.1, 0.2])
def test_a_slanting_row_is_levelled_and_its_boxes_are_where_the_digits_are(slope: float) -> None:
    level, strip = (number_strip(Image.fromarray(row_of_bars(each))) for each in (0.0, slope))
    assert abs(strip.slope - slope) < 0.02
    assert abs(strip.pixels.shape[1] - level.pixels.shape[1]) <= 6
    answer = Sure(None, 0.5, precision="fp32").read(strip)
    assert answer.number == "7" * 12
    for left, digit in zip(BARS, answer.digits, strict=True):
        assert np.abs(np.subtract(digit.box, [left, round(120 + slope * left), 12, 60])).max() <= 6


@pytest.mark.parametrize("walls", [[40, 580], range(66, 580, 40)])
def test_the_frame_of_a_form_s_field_is_left_out(walls: Sequence[int]) -> None:
    image = row_of_bars()
    for top in (105, 200):
        image[top : top + 3, walls[0] : walls[-1] + 3] = 20
    for left in walls:
        image[105:203, left : left + 3] = 20
    found = number_strip(Image.fromarray(image))
    expected = number_strip(Image.fromarray(row_of_bars()))
    assert found.pixels.shape == expected.pixels.shape
    assert np.abs(found.pixels.astype(int) - expected.pixels).mean() < 10


@pytest.mark.parametrize("length", [1, 3])
def test_training_strips_have_the_digits_of_their_number_or_none(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.digits.numbers.P_NONE", 0.3)
    torch.manual_seed(1)
    strips, labels = training_strips(DIGITS, length, 40, np.random.default_rng(1))
    none = (labels == NONE).any(1)
    assert ((labels == NONE).all(1) == none).all()
    assert 0 < none.sum() < 30
    assert all(strip.shape[0] == 28 and strip.shape[1] % 2 == 0 for strip in strips)
    assert all(strip.any() for strip, empty in zip(strips, none, strict=True) if not empty)
    assert ((labels[~none] >= 0) & (labels[~none] < 10)).all()


def test_the_cost_of_a_strip_without_a_number_is_that_of_blanks() -> None:
    logits = torch.randn(5, 2, 11, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[NONE, NONE], [NONE, NONE]])
    blanks = logits.log_softmax(2)[:, :, 10].sum(0)
    torch.testing.assert_close(ctc_loss(logits, labels), -blanks.mean())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_graphs_give_the_modules_logits(precision: Precision, cell: Cell, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = NumberReader((12, 8), cell=cell).eval()
    path = tmp_path / f"reader.{precision}.onnx"
    path.write_bytes(export_numbers(model)[path.name])
    graph = session(path, 1)
    model.eight_bit = precision == "int8"
    for length in (1, 7):
        (pixels,), _ = training_strips(DIGITS, length, 1, np.random.default_rng(length))
        with torch.inference_mode():
            expected = model(torch.from_numpy(pixels)[None].float() / 255)[:, 0].numpy()
        found = graph.run(None, {"pixels": pixels})[0]
        np.testing.assert_allclose(found, expected, atol=1e-5 if precision == "fp32" else 2e-3)


def test_a_stopped_run_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    corpus = drawn_digits.corpus()
    whole, pieces = Run(tmp_path / "whole"), Run(tmp_path / "pieces")
    assert train(SMALL, corpus, whole)
    assert not train(SMALL, corpus, pieces, minutes=0)
    assert train(SMALL, corpus, pieces, resume=True)
    first, second = (torch.load(run.checkpoint)["averaged"] for run in (whole, pieces))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_published_reader_answers_with_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = drawn_digits.corpus()
    monkeypatch.setattr("training.digits.number_publish.IMAGES", 2)
    monkeypatch.setattr("training.digits.number_publish.FIVES", 4)
    monkeypatch.setattr("training.digits.data.load", lambda _: corpus)
    run = Run(tmp_path / "run")
    train(replace(SMALL, samples=8), corpus, run)
    bundle = bundles.read(publish(run, tmp_path / "store", version="1"))
    predictor = load_predictor(bundle, threads=1)
    assert isinstance(predictor, NumbersPredictor)
    assert bundle.manifest.family == "numbers"
    image, _ = number_image(DIGITS, 3, np.random.default_rng(1), touching=False)
    (answer,) = answer_all(predictor, [predictor.prepare(ReadNumber(png(image)))])
    assert isinstance(answer, Number)
    assert (answer.number is None) == (answer.reason is not None)
    assert predictor.probe({"image": base64.b64encode(png(image)).decode()})


class Sure(NumbersPredictor):
    """Reads a 7 wherever there is ink."""

    def logits(self, strip: Strip) -> Floats:
        inked = strip.pixels.max(0).reshape(-1, 2).max(1) > 100
        found = np.zeros((len(inked), 11))
        found[inked, 7], found[~inked, 10] = 30, 30
        return found


def test_each_digit_has_its_box_in_pixels_of_the_image() -> None:
    image = np.full((120, 260), 240, np.uint8)
    boxes = [[20, 30, 20, 60], [80, 30, 30, 60], [150, 40, 12, 50]]
    for left, top, width, height in boxes:
        image[top : top + height, left : left + width] = 10
    answer = Sure(None, 0.5, precision="fp32").read(number_strip(Image.fromarray(image)))
    assert answer.number == "777"
    assert answer.confidence > 0.99
    for digit, box in zip(answer.digits, boxes, strict=True):
        assert np.abs(np.subtract(digit.box, box)).max() <= 4  # a pixel of the strip is three of the image
