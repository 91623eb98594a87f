"""Publishing of a digit reader: calibration, metrics, parity and serving."""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from PIL import Image

from app import bundle as bundles
from app.bundle import Bundle
from app.errors import BundleError, CorpusError
from app.images import framed_array, png
from app.runtime.families.digits import Calibration, Classify, DigitsPredictor, confidences
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from app.runtime.recurrent_engine import Floats
from tests.drawn_digits import corpus as drawn_corpus
from training.digits import publish as publishing
from training.digits import robustness
from training.digits.corruptions import CORRUPTIONS
from training.digits.data import DigitCorpus, Digits
from training.digits.publish import calibrated, drawn_digit, publish, read_config, trained
from training.digits.recipe import NO_DIGIT, PRESETS, DigitsConfig, accuracy, train
from training.run import Run, RunError

FILES = {
    *("README.md", "curves.png", "confusion.png", "errors.png", "reliability.png"),
    *("probe.json", "reader.fp32.onnx", "reader.int8.onnx", "weights.safetensors"),
}
CONFIG = replace(
    PRESETS["best"], hidden_sizes=(16,), patches=(7,), batch_size=20, samples=20 * 40, learning_rate=0.02, average=0.9
)


@pytest.fixture(scope="module")
def corpus() -> DigitCorpus:
    return drawn_corpus()


@pytest.fixture(scope="module", autouse=True)
def small(corpus: DigitCorpus) -> Iterator[None]:
    """Replace MNIST by drawn digits, and measure with few negatives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.digits.data.load", lambda folder: corpus)
        patch.setattr(robustness, "measure", partial(robustness.measure, negatives=2))
        yield


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    field = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(field).resize((80, 60)).save(folder / "one.jpg")
    return folder


@pytest.fixture(scope="module")
def finished(corpus: DigitCorpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of a small `best`. Read only: copy it before a change."""
    run = Run(tmp_path_factory.mktemp("runs") / "finished")
    train(CONFIG, corpus, run)
    return run


@pytest.fixture(scope="module")
def published(finished: Run, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    store = tmp_path_factory.mktemp("store")
    return bundles.read(publish(finished, store, version="v1", photographs=photographs))


def test_a_bundle_is_in_the_store_as_the_current_version(published: Bundle) -> None:
    store = published.folder.parents[1]
    assert published.folder == store / "digits" / "v1"
    assert bundles.current(store, "digits") == "v1"
    assert published.manifest.files.keys() == FILES


def test_the_manifest_states_where_the_model_comes_from(published: Bundle, finished: Run, corpus: DigitCorpus) -> None:
    manifest, described = published.manifest, corpus.describe()
    assert (manifest.family, manifest.model, manifest.version) == ("digits", "digits", "v1")
    assert manifest.commit == finished.read("environment.json")["commit"]
    assert manifest.corpus.model_dump() == {key: described[key] for key in ("name", "terms", "sha256")}
    assert manifest.parameters == sum(parameter.numel() for parameter in trained(finished, CONFIG).parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_configuration_is_read_back_from_a_run_and_from_a_manifest(
    preset: str, published: Bundle, tmp_path: Path
) -> None:
    config = PRESETS[preset]
    assert read_config(json.loads(json.dumps(asdict(config)))) == config
    manifest = published.manifest.model_copy(update={"config": asdict(config), "files": {}})
    stored = bundles.read(bundles.publish(tmp_path, manifest, {})).manifest.config
    assert read_config(stored) == config


def test_the_metrics_are_those_of_the_module_and_of_the_served_graph(
    published: Bundle, finished: Run, corpus: DigitCorpus
) -> None:
    metrics, model = published.manifest.metrics, trained(finished, CONFIG)
    assert metrics["valid_accuracy_fp32"] == pytest.approx(accuracy(model, corpus.valid))
    assert metrics["valid_accuracy"] == metrics[f"valid_accuracy_{published.manifest.served}"]
    assert metrics["int8_cost"] == metrics["valid_accuracy_fp32"] - metrics["valid_accuracy_int8"]
    assert metrics["torch_difference"] < 1e-3
    assert metrics["torch_difference_fp32"] < 1e-5
    assert metrics["torch_difference"] < metrics["int8_difference"] < 0.2
    predictor = load_predictor(published)
    answers = answer_all(predictor, [framed_array(image) for image in corpus.test.images.numpy()])
    digits, labels = [answer.digit for answer in answers], corpus.test.labels.tolist()
    assert metrics["test_accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(digits, labels, strict=True)]))
    assert metrics["test_accuracy"] > 0.8  # it was trained
    assert metrics["test_wrongly_rejected"] == pytest.approx(np.mean([digit is None for digit in digits]))
    for name in ("corrupted_accuracy", "variant_accuracy", "least_variant_accuracy", "negatives_rejected"):
        assert 0 <= metrics[name] <= 1
    assert metrics["test_calibration_error"] > 0


def test_a_changed_weight_is_seen_as_a_difference(published: Bundle, finished: Run, corpus: DigitCorpus) -> None:
    model = trained(finished, CONFIG)
    model.output.bias.data[3] += 1
    found = publishing.parity(model, published, corpus.valid)
    assert min(found["torch_difference"], found["torch_difference_fp32"]) > 0.05
    assert model.eight_bit is False


def test_int8_serves_unless_it_costs_too_much(
    published: Bundle, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = published.manifest.metrics["int8_cost"]
    assert (published.manifest.served == "int8") is (cost <= publishing.INT8_MAY_COST)
    monkeypatch.setattr(publishing, "INT8_MAY_COST", cost - 1e-9)
    manifest = bundles.read(publish(finished, tmp_path)).manifest
    assert manifest.served == "fp32"
    assert manifest.metrics["valid_accuracy"] == manifest.metrics["valid_accuracy_fp32"]


def test_the_probe_is_replayed_by_the_server_and_the_predictor_answers(published: Bundle, corpus: DigitCorpus) -> None:
    recorded = published.json("probe.json")
    predictor = load_predictor(published)  # raises unless the answers are as recorded
    assert isinstance(predictor, DigitsPredictor)
    assert predictor.precision == published.manifest.served
    assert predictor.probe(recorded["payload"]) == recorded["answers"][predictor.precision]
    assert len(recorded["answers"]["fp32"]) == 11
    image = corpus.train.images[0].numpy()
    (answer,) = answer_all(predictor, [predictor.prepare(Classify(png(image)))])
    assert int(np.argmax(answer.probabilities)) == corpus.train.labels[0]


def test_the_drawn_probe_is_no_blank() -> None:
    assert framed_array(drawn_digit()).reason is None


def test_the_model_card_states_terms_metrics_and_weaknesses(published: Bundle) -> None:
    card, manifest = published.text("README.md"), published.manifest
    assert card.startswith("# digits v1\n")
    for expected in (
        manifest.corpus.terms,
        "a ReNet of bidirectional GRUs (16 units on patches of 7 x 7)",
        f"{manifest.parameters:,} parameters",
        f"| test digits classified correctly (30) | {100 * manifest.metrics['test_accuracy']:.2f} |",
        f"the temperature {manifest.calibration['temperature']:.3f}",
        f"likeliest digit exceeds {manifest.calibration['rejection_threshold']:.3f}",
        f"as served ({manifest.served})",
        *(f"| {name} |" for name in (*CORRUPTIONS, "photographs")),
        *(f"]({name})" for name in ("confusion.png", "errors.png", "reliability.png", "curves.png")),
        "## Limitations",
    ):
        assert expected in card
    assert "$" not in card
    assert all(published.path(name).read_bytes().startswith(b"\x89PNG\r\n") for name in FILES if name.endswith("png"))


# calibration


class Fixed:
    """A fake graph that finds the logits of an image by its first pixels."""

    def __init__(self, logits: Floats) -> None:
        self._logits = logits

    def run(self, _: None, feed: dict[str, npt.NDArray[np.uint8]]) -> list[Floats]:
        numbers = feed["pixels"][:, 14, [9, 18]].astype(int) @ (256, 1)
        return [self._logits[numbers]]


def knowing(logits: Floats) -> tuple[DigitsPredictor, npt.NDArray[np.uint8]]:
    """A predictor that gives `logits[n]` to image n, and those images."""
    images = np.zeros((len(logits), 28, 28), np.uint8)
    high, low = (part[:, None, None] for part in np.divmod(np.arange(len(logits)), 256))  # where a turn leaves them
    images[:, 9:19, 5:13], images[:, 9:19, 15:23] = high, low
    reader = cast(ort.InferenceSession, Fixed(logits))
    return DigitsPredictor(reader, Calibration(1.0, 1.0), precision="int8"), images


def wavering(count: int, classes: int, sharpness: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Logits that are `sharpness` times too sharp, and labels drawn from the true probabilities."""
    rng = np.random.default_rng(8)
    right = rng.normal(0, 2, (count, classes))
    shares = np.exp(right[:, :10]) / np.exp(right[:, :10]).sum(1, keepdims=True)
    return sharpness * right, np.array([rng.choice(10, p=share) for share in shares])


@pytest.mark.parametrize("sharpness", [0.5, 3.0])
@pytest.mark.parametrize("classes", [10, 11])
def test_the_temperature_has_the_least_negative_log_likelihood(sharpness: float, classes: int) -> None:
    logits, labels = wavering(3000, classes, sharpness)
    predictor, images = knowing(logits.astype(np.float32))
    valid = Digits(torch.from_numpy(images), torch.from_numpy(labels))
    found = calibrated(predictor, valid).temperature
    assert found == pytest.approx(sharpness, rel=0.1)

    def cost(temperature: float) -> float:
        scaled = torch.from_numpy(logits[:, :10].astype(np.float32) / np.float32(temperature)).double()
        return float(torch.nn.functional.cross_entropy(scaled, valid.labels))

    grid = found * np.exp(np.linspace(-0.5, 0.5, 41))
    assert grid[np.argmin([cost(temperature) for temperature in grid])] == pytest.approx(found)


def doubting(doubts: Sequence[float]) -> Floats:
    """Logits of eleven classes: a sure zero, and `doubt` that it is a digit at all."""
    logits = np.full((len(doubts), 11), -30.0, np.float32)
    logits[:, 0] = 0
    logits[:, 10] = [math.log(doubt / (1 - doubt)) for doubt in doubts]
    return logits


@pytest.mark.parametrize("count", [100, 1500, 5000])
def test_the_threshold_is_as_strict_as_it_can_be_and_keep_all_but_one_digit_in_a_thousand(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = np.random.default_rng(2).uniform(0.01, 0.95, count)
    predictor, images = knowing(doubting(plain.tolist()))
    valid = Digits(torch.from_numpy(images), torch.zeros(count, dtype=torch.int64))
    monkeypatch.setattr(publishing, "_temperature", lambda logits, labels: 1.0)
    chosen = calibrated(predictor, valid)
    doubts = 1 - confidences(predictor.recalibrated(chosen).probabilities(images))
    assert (doubts <= chosen.rejection_threshold).mean() >= 0.999
    assert chosen.rejection_threshold == pytest.approx(np.sort(plain)[-1 - count // 1000], rel=1e-4)


# refusals


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything is measured."""

    def parity(*arguments: object) -> None:
        pytest.fail("minutes of measuring for what can't be published")

    monkeypatch.setattr(publishing, "parity", parity)


def test_a_version_that_is_there_is_rejected_before_any_measuring(
    published: Bundle, finished: Run, photographs: Path, unmeasured: None
) -> None:
    with pytest.raises(BundleError, match=f"{published.folder}: expected an unpublished version"):
        publish(finished, published.folder.parents[1], version="v1", photographs=photographs)


def test_photographs_that_are_not_there_are_rejected_before_any_measuring(
    finished: Run, tmp_path: Path, unmeasured: None
) -> None:
    with pytest.raises(CorpusError, match=f"{tmp_path}/nowhere: expected a folder or a tar of photographs"):
        publish(finished, tmp_path / "store", photographs=tmp_path / "nowhere")
    assert not (tmp_path / "store").exists()


def test_an_unfinished_run_is_rejected(
    corpus: DigitCorpus, photographs: Path, tmp_path: Path, unmeasured: None
) -> None:
    run, store = Run(tmp_path / "run"), tmp_path / "store"
    train(CONFIG, corpus, run, minutes=0)
    with pytest.raises(RunError, match=f"{run.folder}: expected 800 samples seen, found 20; go on with --resume"):
        publish(run, store, photographs=photographs)
    assert not store.exists()


def test_a_run_without_a_checkpoint_is_rejected(
    finished: Run, photographs: Path, tmp_path: Path, unmeasured: None
) -> None:
    shutil.copytree(finished.folder, tmp_path / "copied")
    copied = Run(tmp_path / "copied")
    copied.checkpoint.unlink()
    with pytest.raises(RunError, match=f"{copied.checkpoint}: expected a checkpoint, found none"):
        publish(copied, tmp_path / "store", photographs=photographs)


def test_the_averaged_weights_are_published(finished: Run) -> None:
    saved: dict[str, Any] = torch.load(finished.checkpoint)
    for name, value in trained(finished, CONFIG).state_dict().items():
        assert value.equal(saved["averaged"][f"module.{name}"])
        assert not value.equal(saved["model"][name])


def test_a_chapters_reader_is_published_and_served_photographs_or_not(corpus: DigitCorpus, tmp_path: Path) -> None:
    config: DigitsConfig = replace(PRESETS["chapter"], hidden_sizes=(16,), batch_size=20, samples=20 * 40)
    run = Run(tmp_path / "run")
    train(config, corpus, run)
    bundle = bundles.read(publish(run, tmp_path / "store", name="rows"))
    assert bundle.manifest.model == "rows"
    assert "one bidirectional LSTM of 16 units, row by row" in bundle.text("README.md")
    assert "| photographs |" not in bundle.text("README.md")
    predictor = load_predictor(bundle)
    assert isinstance(predictor, DigitsPredictor)
    assert predictor.logits(corpus.test.images.numpy()[:2]).shape == (2, NO_DIGIT)


def test_a_configuration_with_former_names_is_read(published: Bundle) -> None:
    stored = published.manifest.config
    former = {"p_elastic": "rewritten", "p_degraded": "soiled", "p_printed": "printed"}
    assert read_config({former.get(name, name): value for name, value in stored.items()}) == read_config(stored)
