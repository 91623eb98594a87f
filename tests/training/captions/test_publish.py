"""From a finished captions run to a bundle that is measured, proved and served."""

import hashlib
import io
import json
import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import fx, nn

from app import bundle as bundles
from app.bundle import Bundle
from app.errors import BundleError, CorpusError
from app.models.language_model import parameter_count
from app.runtime.families.captions import CaptionsPredictor, Describe, Description
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from tests.training.captions.plates import write_plates
from training.captions import data as data
from training.captions import features
from training.captions import publisher as publishing
from training.captions.annotations import Photo
from training.captions.config import CaptionsConfig
from training.captions.data import CaptionCorpus
from training.captions.features import Backbone
from training.captions.publish import CaptionsPublisher, publish
from training.captions.publisher import drawn_scene
from training.captions.recipe import train
from training.captions.scores import score
from training.publishing import Measurements
from training.run import Run, RunError

FILES = {
    "README.md",
    "begin.fp32.onnx",
    "begin.int8.onnx",
    "cnn.fp32.onnx",
    "curves.png",
    "gallery.png",
    "probe.json",
    "step.fp32.onnx",
    "step.int8.onnx",
    "vocabulary.txt",
    "weights.safetensors",
}
COUNTS = {"train": 16, "val": 8, "test": 8}
CONFIG = CaptionsConfig(
    min_count=1,
    views=1,
    cell="gru",
    inject="init",
    embedding_size=12,
    hidden_size=12,
    tied=True,
    input_dropout=0.0,
    output_dropout=0.0,
    batch_size=8,
    epochs=6,
    learning_rate=0.02,
    precision="32-true",
)


class Colours(nn.Module):
    """The mean colour of four places."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Conv2d(3, 12, 112, 112)

    def forward(self, photographs: torch.Tensor) -> torch.Tensor:
        """(B, 3, 224, 224) -> (B, 12)."""
        return torch.flatten(nn.functional.adaptive_avg_pool2d(self.places(photographs), 1), 1)


def colours() -> Backbone:
    torch.manual_seed(2)
    return Backbone("colours", fx.symbolic_trace(Colours().eval()), 12, "c" * 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    captions = ("A {colour} plate.", "One {colour} plate on a table.", "The plate's {colour}.")
    return write_plates(tmp_path_factory.mktemp("plates") / "plates", COUNTS, 4, captions)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The tiny backbone, a cache of the tests' own, and no Java, which takes seconds to start."""
    monkeypatch.setattr(features, "backbone", lambda name, weights: colours())
    monkeypatch.setattr(data, "load", partial(data.load, cache=tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(publishing, "score", partial(score, java=None))


@pytest.fixture(scope="module")
def corpus(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CaptionCorpus:
    source = data.source(folder, "free for all")
    return data.load(source, colours(), views=1, min_count=1, cache=tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="module")
def finished(corpus: CaptionCorpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.captions.validation.score", partial(score, java=None))
        run = Run(tmp_path_factory.mktemp("runs") / "finished")
        assert train(CONFIG, corpus, run)
    return run


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Run:
    """A finished run that a test may change."""
    shutil.copytree(finished.folder, tmp_path / "copied")
    return Run(tmp_path / "copied")


@pytest.fixture(scope="module")
def store(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the published run, read only."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "backbone", lambda name, weights: colours())
        patch.setattr(data, "load", partial(data.load, cache=tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr(publishing, "score", partial(score, java=None))
        publish(finished, folder, version="v1")
    return folder


@pytest.fixture
def published(store: Path) -> Bundle:
    return bundles.read(store / "captions" / "v1")


def test_a_bundle_is_in_the_store_as_the_current_version(published: Bundle, store: Path) -> None:
    assert bundles.models(store) == ["captions"]
    assert bundles.current(store, "captions") == "v1"
    assert published.manifest.files.keys() == FILES


def test_the_manifest_records_the_origin_of_the_model(published: Bundle, finished: Run, corpus: CaptionCorpus) -> None:
    manifest = published.manifest
    assert (manifest.family, manifest.model, manifest.version) == ("captions", "captions", "v1")
    chosen = {"length_penalty": finished.read("result.json")["length_penalty"]}
    assert manifest.config == finished.read("config.json") | chosen
    assert manifest.vocabulary_sha256 == hashlib.sha256(published.path("vocabulary.txt").read_bytes()).hexdigest()
    assert published.text("vocabulary.txt").split("\n") == list(corpus.vocabulary.tokens)
    assert manifest.corpus.model_dump() == {"name": "plates", "terms": "free for all", "sha256": corpus.sha256}
    model = CaptionsPublisher(finished).build(corpus)
    assert manifest.parameters == parameter_count(model) + parameter_count(colours().module)


def test_the_metrics_are_those_of_the_captions_that_the_bundle_gives(
    published: Bundle, corpus: CaptionCorpus, folder: Path
) -> None:
    predictor = load_predictor(published)
    assert isinstance(predictor, CaptionsPredictor)
    for split, name in (("val", "valid"), ("test", "test")):
        photographs = [Describe((folder / file).read_bytes()) for file in corpus.splits[split].names]
        answers = answer_all(predictor, [predictor.prepare(each) for each in photographs])
        captions = [answer.text for answer in answers]
        expected = score(captions, corpus.splits[split].captions, java=None)
        metrics = published.manifest.metrics
        for metric in ("cider", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"):
            assert metrics[f"{name}_{metric}"] == pytest.approx(getattr(expected, metric)), metric
        assert metrics[f"{name}_distinct"] == len(set(captions))
        assert f"{name}_meteor" not in metrics  # for want of Java
    assert metrics["test_cider"] > 50  # it has learned the colours of plates
    assert metrics["int8_cost"] == pytest.approx(metrics["valid_cider_fp32"] - metrics["valid_cider_int8"])
    assert 0 < metrics["torch_difference"] < 1e-4


def test_the_difference_from_torch_is_seen_where_there_is_one(
    published: Bundle, finished: Run, corpus: CaptionCorpus
) -> None:
    publisher, predictor = CaptionsPublisher(finished), load_predictor(published)
    assert isinstance(predictor, CaptionsPredictor)
    model = publisher.build(corpus)
    model.output.bias.data[3] += 0.5
    assert publisher.torch_difference(predictor, corpus, model) == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize(("may_cost", "served"), [(math.inf, "int8"), (-math.inf, "fp32")])
def test_int8_serves_unless_it_costs_too_much(
    may_cost: float, served: str, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CaptionsPublisher, "int8_may_cost", may_cost)
    manifest = bundles.read(publish(finished, tmp_path)).manifest
    assert manifest.served == served
    assert manifest.metrics["valid_cider"] == manifest.metrics[f"valid_cider_{served}"]


def test_the_test_photographs_are_scored_once(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captioned: list[str] = []
    caption = CaptionsPublisher.caption

    def watched(
        publisher: CaptionsPublisher, predictor: CaptionsPredictor, photos: Sequence[Photo]
    ) -> list[Description]:
        captioned.extend({photo.split for photo in photos})
        return caption(publisher, predictor, photos)

    monkeypatch.setattr(CaptionsPublisher, "caption", watched)
    publish(finished, tmp_path)
    assert captioned == ["val", "val", "test"]


def test_the_probe_is_a_drawing_that_the_server_answers_as_recorded(published: Bundle) -> None:
    recorded = published.json("probe.json")
    image = Image.open(io.BytesIO(drawn_scene()))
    assert image.size == (224, 224)  # so nothing is resized, which libraries do differently
    predictor = load_predictor(published)  # raises unless the answer is as recorded
    ((caption, log_probability),) = recorded["answers"][published.manifest.served]
    ((found, value),) = predictor.probe(recorded["payload"])
    assert found == caption
    assert value == pytest.approx(log_probability, abs=1e-5)


def test_the_model_card_has_terms_metrics_and_limits(published: Bundle, finished: Run, corpus: CaptionCorpus) -> None:
    card, metrics = published.text("README.md"), published.manifest.metrics
    assert card.startswith("# captions v1\n")
    for expected in (
        "free for all",
        "GRU of 12 units",
        "whose state starts from the photograph",
        "6 passes over the captions.",
        "Every 40th test photograph",
        f"| CIDEr | {metrics['valid_cider']:.1f} | {metrics['test_cider']:.1f} |",
        "| METEOR | - | - |",
        f"{published.manifest.served} graphs, a beam of 3",
        "![photographs and their captions](gallery.png)",
        "![learning curve](curves.png)",
        "## Limitations",
    ):
        assert expected in card
    assert "$" not in card
    for image in ("curves.png", "gallery.png"):
        assert published.path(image).read_bytes().startswith(b"\x89PNG\r\n")
    rewarded = published.manifest.model_copy(update={"config": published.manifest.config | {"reward_epochs": 3}})
    again = CaptionsPublisher(finished).card(rewarded, corpus, Measurements({}, "int8", {}))
    assert "6 passes over the captions, then 3 over the photographs with CIDEr-D as reward." in again


def test_a_version_that_is_there_is_rejected_before_any_measuring(
    store: Path, finished: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        CaptionsPublisher, "measure", lambda *arguments: pytest.fail("minutes of measuring for nothing")
    )
    with pytest.raises(BundleError, match="expected an unpublished version"):
        publish(finished, store, version="v1")


def test_an_unfinished_run_is_rejected(copied: Run, tmp_path: Path) -> None:
    state = torch.load(copied.checkpoint)
    state["progress"]["epoch"] = 5
    torch.save(state, copied.checkpoint)
    with pytest.raises(RunError, match="expected 6 finished epochs, found 5; go on with --resume"):
        publish(copied, tmp_path / "store")
    copied.checkpoint.unlink()
    with pytest.raises(RunError, match=f"{copied.checkpoint}: expected a checkpoint, found none"):
        publish(copied, tmp_path / "store")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_photograph_that_changed_since_the_training_is_rejected(
    split: str, copied: Run, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "plates")
    (tmp_path / "plates" / f"{split}0.png").write_bytes(drawn_scene())
    described = copied.read("source.json") | {"folder": str(tmp_path / "plates")}
    (copied.folder / "source.json").write_text(json.dumps(described))
    with pytest.raises(RunError, match=f"started on other texts: sha256 of {split} is"):
        publish(copied, tmp_path / "store")


def test_without_test_photographs_nothing_is_published(copied: Run, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "plates")
    images = json.loads((folder / "captions.json").read_text())["images"]
    kept = [image for image in images if image["split"] != "test"]
    (tmp_path / "plates" / "captions.json").write_text(json.dumps({"images": kept}))
    described = copied.read("source.json") | {"folder": str(tmp_path / "plates")}
    corpus = data.load(data.source(tmp_path / "plates"), colours(), views=1, min_count=1)
    (copied.folder / "source.json").write_text(json.dumps(described | {"sha256": corpus.sha256}))
    with pytest.raises(CorpusError, match="expected photographs of the split test to publish with, found none"):
        publish(copied, tmp_path / "store")


def test_the_backbone_s_weights_are_looked_for_where_the_run_had_them(
    copied: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Path | None]] = []

    def watched(name: str, weights: Path | None) -> Backbone:
        asked.append((name, weights))
        return colours()

    monkeypatch.setattr(features, "backbone", watched)
    described = copied.read("source.json")
    (copied.folder / "source.json").write_text(json.dumps(described | {"weights": "/somewhere/weights.safetensors"}))
    publish(copied, tmp_path)
    assert asked == [("mobilenet_v2", Path("/somewhere/weights.safetensors"))]
