"""The digits predictor: calibration, rejection and its bundles."""

import base64
import json
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from prometheus_client import CollectorRegistry

from app import bundle as bundles
from app.bundle import Bundle
from app.errors import BundleError, Malformed, TooLarge
from app.images import MAX_PIXELS, Framed, framed_array, png, turned
from app.manifest import Manifest
from app.models.digits import ReNet, RowReader
from app.models.language_model import parameter_count
from app.runtime.families.digits import (
    NO_DIGIT,
    ROTATION,
    Calibration,
    Classification,
    Classify,
    DigitsPredictor,
    calibration,
)
from app.runtime.families.language_model import Suggest
from app.runtime.loading import load_predictor
from app.runtime.metrics import Metrics
from app.runtime.predictor import Resources, answer_all
from app.runtime.recurrent_engine import Floats
from app.runtime.registry import Registry
from tests.drawn_digits import digits
from tests.manifests import tiny_manifest
from training.digits.export import export_digits
from training.publishing import PRECISIONS, probe

CALIBRATION = {"temperature": 1.5, "rejection_threshold": 0.9}


class Reader:
    """A fake graph: returns the logits n for an image with shade n at its centre, however it is rotated."""

    def __init__(self, logits: Sequence[Sequence[float]]) -> None:
        self._logits = np.array(logits, np.float32)
        self.asked: list[int] = []

    def run(self, _: None, feed: dict[str, npt.NDArray[np.uint8]]) -> list[Floats]:
        pixels = feed["pixels"]
        assert pixels.shape[1:] == (28, 28)
        assert pixels.dtype == np.uint8
        self.asked.append(len(pixels))
        return [self._logits[pixels[:, 14, 14]]]


def shaded(shade: int) -> npt.NDArray[np.uint8]:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[9:19, 9:19] = shade
    return pixels


def answers(
    logits: Sequence[Sequence[float]],
    *,
    reasons: Sequence[str | None] = (),
    temperature: float = 1,
    threshold: float = 1,
) -> list[Classification]:
    """Return the answers to images with these logits, and perhaps a framing reason."""
    reader = cast(ort.InferenceSession, Reader(logits))
    predictor = DigitsPredictor(reader, Calibration(temperature, threshold), precision="int8")
    reasons = reasons or [None] * len(logits)
    found = predictor.step([Framed(shaded(n), reason) for n, reason in enumerate(reasons)])
    assert None not in found
    return [each for each in found if each is not None]


def logits(likeliest: int, probability: float, none: float | None = None) -> list[float]:
    """Return logits that give `probability` to one digit and share the rest; without a digit, equal logits."""
    rest = math.log((1 - probability) / 9)
    of_digits = [math.log(probability) if digit == likeliest else rest for digit in range(10)]
    return of_digits if none is None else [*of_digits, math.log(none / (1 - none))]


# calibration


@pytest.mark.parametrize("none", [None, 0.25])
def test_logits_are_probabilities_of_each_class(none: float | None) -> None:
    found = Calibration(1.0, 0.5).probabilities(np.array([logits(3, 0.7, none), logits(9, 0.1, none)], np.float32))
    sure = np.array([[0.7 if digit == 3 else 0.3 / 9 for digit in range(10)], [0.1] * 10])
    np.testing.assert_allclose(found[:, :10], sure * (1 - (none or 0)), rtol=1e-6)
    np.testing.assert_allclose(found[:, 10:], none or 0, rtol=1e-6)


@pytest.mark.parametrize("outputs", [10, 11])
def test_logits_are_divided_by_the_temperature(outputs: int) -> None:
    raw = np.random.default_rng(1).normal(size=(4, outputs)).astype(np.float32)
    warm, plain = Calibration(2.5, 0.5).probabilities(raw), Calibration(1.0, 0.5).probabilities(raw / np.float32(2.5))
    np.testing.assert_allclose(warm, plain, rtol=1e-5)
    cold = Calibration(1.0, 0.5).probabilities(raw)
    assert (warm.max(1) < cold.max(1)).all()
    assert (warm.argmax(1) == cold.argmax(1)).all()


def test_large_logits_are_probabilities_too() -> None:
    found = Calibration(0.01, 0.5).probabilities(np.array([[1e4] + [-1e4] * 10], np.float32))
    assert found[0].tolist() == [1] + [0] * 10


# second looks


def test_only_doubtful_images_are_read_again_rotated_both_ways_in_one_batch() -> None:
    reader = Reader([logits(3, 0.95), logits(4, 0.85), logits(5, 0.7)])
    predictor = DigitsPredictor(cast(ort.InferenceSession, reader), Calibration(1.0, 1.0), precision="int8")
    predictor.step([Framed(shaded(n), None) for n in range(3)])
    assert reader.asked == [3, 4]
    predictor.step([Framed(shaded(0), None)])
    assert reader.asked == [3, 4, 1]


def test_rotated_readings_count_as_much_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [logits(3, 0.6, none=0.1), logits(3, 0.9, none=0.1), logits(8, 0.6, none=0.5)]
    monkeypatch.setattr(
        "app.runtime.families.digits.turned", lambda pixels, degrees: np.stack([shaded(1 if degrees > 0 else 2)])
    )
    (found, *_) = answers(seen)
    probabilities = Calibration(1.0, 1.0).probabilities(np.array(seen, np.float32)).mean(0)
    assert found.confidence == pytest.approx(probabilities[:10].max())
    assert found.probabilities == pytest.approx((probabilities[:10] / probabilities[:10].sum()).tolist())


# answers


def test_the_likeliest_digit_is_answered_with_its_probability() -> None:
    (found,) = answers([logits(3, 0.7)])
    assert (found.digit, found.rejected, found.reason) == (3, False, None)
    assert found.confidence == pytest.approx(0.7)
    assert found.probabilities == pytest.approx([0.7 if digit == 3 else 0.3 / 9 for digit in range(10)])


def test_confidence_is_the_probability_of_the_likeliest_digit() -> None:
    (found,) = answers([logits(3, 0.7, none=0.2)])
    assert found.confidence == pytest.approx(0.7 * 0.8)
    assert max(found.probabilities) == pytest.approx(0.7)
    assert sum(found.probabilities) == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "rejected"),
    [
        (logits(3, 0.7, none=0.14), False),  # 0.7 of 0.86: a doubt of 0.398
        (logits(3, 0.7, none=0.15), True),
        (logits(3, 0.99, none=0.41), True),  # no digit
        (logits(3, 0.59, none=0.01), True),  # a digit, but which?
        (logits(3, 0.61), False),
        (logits(3, 0.59), True),
    ],
)
def test_more_doubt_than_the_threshold_rejects(given: list[float], rejected: bool) -> None:
    (found,) = answers([given], threshold=0.4)
    assert found.rejected is rejected
    assert (found.digit, found.reason) == ((None, NO_DIGIT) if rejected else (3, None))
    assert int(np.argmax(found.probabilities)) == 3  # if it is one


def test_an_image_that_framing_rejects_is_rejected_for_its_reason_whatever_the_logits() -> None:
    blank, seen = answers([logits(3, 0.99, 0.01)] * 2, reasons=["blank image", None], threshold=0.4)
    assert (blank.digit, blank.rejected, blank.reason) == (None, True, "blank image")
    assert blank.confidence == 0
    assert blank.probabilities == pytest.approx([0.1] * 10)
    assert (seen.digit, seen.reason) == (3, None)


# a real bundle


def manifest(model: RowReader | ReNet, **changes: Any) -> Manifest:
    fields = {"model": "digits", "calibration": CALIBRATION, "parameters": parameter_count(model)}
    return tiny_manifest("digits", **fields | changes)


def seven() -> npt.NDArray[np.uint8]:
    drawn = digits(20, seed=7)
    image: npt.NDArray[np.uint8] = drawn.images[drawn.labels == 7][0].numpy()
    return image


PAYLOAD = {"image": base64.b64encode(png(seven())).decode()}


@pytest.fixture(scope="module")
def digits_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny reader with random weights, eleven classes, as `digits` version `1`. Read only."""
    torch.manual_seed(3)
    model = ReNet([(4, 5), (7, 6)]).eval()
    contents: dict[str, bytes | Path] = dict(export_digits(model))
    draft = bundles.read(bundles.publish(tmp_path_factory.mktemp("draft"), manifest(model), contents))
    predictors = {p: DigitsPredictor.open(draft, p, Resources()) for p in PRECISIONS}
    contents["probe.json"] = json.dumps(probe(predictors, PAYLOAD)).encode()
    return bundles.read(bundles.publish(tmp_path_factory.mktemp("store"), manifest(model), contents))


def published(bundle: Bundle, store: Path, contents: dict[str, bytes] | None = None, **changes: Any) -> Bundle:
    """The bundle in another store, some of it changed."""
    files: dict[str, bytes | Path] = {name: bundle.path(name) for name in bundle.manifest.files}
    changed = bundle.manifest.model_copy(update={"files": {}, **changes})
    return bundles.read(bundles.publish(store, changed, files | (contents or {})))


@pytest.fixture
def predictor(digits_bundle: Bundle) -> DigitsPredictor:
    return DigitsPredictor.open(digits_bundle, "int8", Resources())


def test_an_image_is_framed_as_it_is_prepared(predictor: DigitsPredictor) -> None:
    found = predictor.prepare(Classify(png(255 - np.kron(seven(), np.ones((4, 4), np.uint8)))))
    assert found.reason is None
    assert np.corrcoef(found.pixels.ravel(), seven().ravel())[0, 1] > 0.9
    np.testing.assert_array_equal(predictor.prepare(Classify(png(seven()))).pixels, seven())


def test_an_undecodable_image_is_rejected_by_name(predictor: DigitsPredictor) -> None:
    with pytest.raises(Malformed, match=r"^image.4: expected PNG"):
        predictor.prepare(Classify(b"none", "image.4"))
    side = math.isqrt(MAX_PIXELS) + 1
    with pytest.raises(TooLarge, match=r"^image.5: expected at most"):
        predictor.prepare(Classify(png(np.zeros((side, side), np.uint8)), "image.5"))


def test_an_answer_does_not_depend_on_what_shares_its_step(predictor: DigitsPredictor) -> None:
    examples = [framed_array(image) for image in digits(9, seed=5).images.numpy()]
    alone = [answer for example in examples for answer in answer_all(predictor, [example])]
    together = answer_all(predictor, examples)
    assert [(each.digit, each.confidence, each.probabilities) for each in together] == [
        (each.digit, each.confidence, each.probabilities) for each in alone
    ]
    for answer, example in zip(together, examples, strict=True):
        np.testing.assert_array_equal(answer.framed, example.pixels)


def test_a_blank_image_is_rejected_beside_others(predictor: DigitsPredictor) -> None:
    blank = predictor.prepare(Classify(png(np.full((40, 60), 255, np.uint8))))
    seen = predictor.prepare(Classify(png(seven())))
    found, other = answer_all(predictor, [blank, seen])
    assert (found.digit, found.reason) == (None, "blank image")
    assert other.reason != "blank image"


def test_the_bundles_calibration_is_the_predictors(digits_bundle: Bundle, predictor: DigitsPredictor) -> None:
    example = framed_array(seven())
    found = predictor.recalibrated(Calibration(**CALIBRATION)).probabilities(example.pixels[None])[0]
    (answer,) = answer_all(predictor, [example])
    assert answer.probabilities == (found[:10] / found[:10].sum()).tolist()
    assert answer.confidence == found[:10].max()
    warmer = predictor.recalibrated(Calibration(9.0, 0.5)).probabilities(example.pixels[None])[0]
    assert warmer.max() < found.max()


def test_a_reader_of_ten_classes_answers_as_well(tmp_path: Path) -> None:
    model = RowReader(hidden_size=6).eval()
    bundle = bundles.read(bundles.publish(tmp_path, manifest(model), dict(export_digits(model))))
    predictor = DigitsPredictor.open(bundle, "fp32", Resources())
    (answer,) = answer_all(predictor, [framed_array(seven())])
    with torch.inference_mode():
        looks = np.stack([seven(), *(turned(seven()[None], degrees)[0] for degrees in (ROTATION, -ROTATION))])
        expected = (model(torch.from_numpy(looks) / 255) / CALIBRATION["temperature"]).softmax(1).mean(0)
    assert answer.probabilities == pytest.approx(expected.tolist(), abs=1e-6)
    assert answer.confidence == pytest.approx(max(answer.probabilities))
    assert [name for name, _ in predictor.probe(PAYLOAD)] == [*map(str, range(10))]


def test_the_probe_returns_the_probability_of_each_digit_and_of_none(
    digits_bundle: Bundle, predictor: DigitsPredictor
) -> None:
    found = predictor.probe(PAYLOAD)
    assert [name for name, _ in found] == [*map(str, range(10)), "none"]
    (answer,) = answer_all(predictor, [framed_array(seven())])
    assert max(value for _, value in found[:10]) == answer.confidence
    assert sum(value for _, value in found) == pytest.approx(1)
    assert found == digits_bundle.json("probe.json")["answers"]["int8"]


def test_the_probe_of_a_rejected_image_returns_the_rejection(digits_bundle: Bundle, predictor: DigitsPredictor) -> None:
    cautious = predictor.recalibrated(Calibration(1.5, 0.0))
    ((name, confidence),) = cautious.probe(PAYLOAD)
    assert (name, confidence) == ("rejected", max(value for _, value in predictor.probe(PAYLOAD)[:10]))


def test_a_bundle_whose_further_probe_has_another_answer_is_rejected(digits_bundle: Bundle, tmp_path: Path) -> None:
    document = digits_bundle.json("probe.json")
    for index, answer in enumerate((document["answers"]["int8"], [["rejected", 0.5]])):
        further = {"payload": PAYLOAD, "answers": {"int8": answer, "fp32": answer}}
        content = json.dumps(document | {"further": [further]}).encode()
        bundle = published(digits_bundle, tmp_path / str(index), {"probe.json": content})
        if index:
            with pytest.raises(BundleError, match=r"fp32: probe: expected \[\['rejected', 0.5\]\], found"):
                load_predictor(bundle)
        else:
            assert load_predictor(bundle).precision == "int8"


# opening


@pytest.mark.parametrize(
    "found", [{}, {"temperature": 1.0}, {"rejection_threshold": 0.5}, {**CALIBRATION, "bias": 0.1}], ids=str
)
def test_a_bundle_without_its_calibration_is_rejected(
    found: dict[str, float], digits_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = published(digits_bundle, tmp_path, calibration=found)
    with pytest.raises(BundleError) as refusal:
        load_predictor(bundle)
    expected = f"calibration: expected temperature and rejection_threshold, found {found}"
    assert str(refusal.value) == f"{bundle.folder}: {expected}"
    assert calibration(CALIBRATION, "here") == Calibration(1.5, 0.9)


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": 1e6}, {"rejection_threshold": 8.6}], ids=str)
def test_a_calibration_out_of_its_bounds_is_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(BundleError, match="here: calibration: expected a temperature of at most 100"):
        calibration({**CALIBRATION, **wrong}, "here")


def test_a_bundle_without_its_graph_is_rejected(digits_bundle: Bundle, tmp_path: Path) -> None:
    files = {name: entry for name, entry in digits_bundle.manifest.files.items() if name != "reader.int8.onnx"}
    unlisted = Bundle(digits_bundle.folder, digits_bundle.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match=r"expected a file reader.int8.onnx in the list, found none"):
        load_predictor(unlisted)
    broken = published(digits_bundle, tmp_path, {"reader.int8.onnx": b"?"})
    with pytest.raises(BundleError, match=r"reader.int8.onnx: expected a graph that ONNX Runtime can run"):
        load_predictor(broken)


def test_int8_serves_where_it_passes_the_probe(digits_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    assert load_predictor(digits_bundle).precision == "int8"
    assert caplog.text == ""


@pytest.mark.parametrize(("off", "precision"), [(0.009, "int8"), (0.011, "fp32")])
def test_fp32_serves_with_a_warning_where_int8_fails_the_probe(
    off: float, precision: str, digits_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = digits_bundle.json("probe.json")
    document["answers"]["int8"][4][1] += off
    bundle = published(digits_bundle, tmp_path, {"probe.json": json.dumps(document).encode()})
    with caplog.at_level(logging.WARNING):
        predictor = load_predictor(bundle)
    assert predictor.precision == precision
    assert ("falling back to fp32 on this machine" in caplog.text) is (precision == "fp32")
    assert predictor.probe(PAYLOAD) == DigitsPredictor.open(digits_bundle, predictor.precision, Resources()).probe(
        PAYLOAD
    )


# beside others


@pytest.mark.anyio
async def test_one_store_serves_it_beside_a_language_model(
    digits_bundle: Bundle, tiny_store: Path, tmp_path: Path, predictor: DigitsPredictor
) -> None:
    store = tmp_path / "store"
    shutil.copytree(tiny_store, store)
    published(digits_bundle, store)
    metrics = Metrics(CollectorRegistry())
    registry = Registry(store, threads=1, queue_size=8, batch_size=8, cache_bytes=1 << 20, metrics=metrics).load()
    assert registry.rejected == {}
    assert [(model.name, model.manifest.family) for model in registry.served()] == [
        ("digits", "digits"),
        ("tiny", "language_model"),
    ]
    answer = await registry.get(None, "digits").answer(Classify(png(seven())))
    (expected,) = answer_all(predictor, [framed_array(seven())])
    assert (answer.digit, answer.probabilities) == (expected.digit, expected.probabilities)
    with pytest.raises(Malformed, match=r"^upload.png: "):
        await registry.get("digits", "digits").answer(Classify(b"none", "upload.png"))
    assert (await registry.get(None, "language_model").answer(Suggest("the"))).suggestions
    await registry.close()
