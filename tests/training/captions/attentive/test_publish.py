"""From photographs and sentences to a run and a bundle that is measured, proved and served."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from app import bundle as bundles
from app.errors import CorpusError
from app.models.efficientnet_lite import EfficientNetLite2
from app.runtime.families.captions import CaptionsPredictor, Describe, Description
from app.runtime.families.image_decoders import CaptionTag
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from tests.detectors import detector
from tests.training.captions.plates import write_plates
from training.captions import data as collections
from training.captions import publisher as publishing
from training.captions.attentive import data, validation
from training.captions.attentive import publish as attentive_publishing
from training.captions.attentive.config import PRESETS
from training.captions.attentive.measures import gendered, measures, neutralised, repeats
from training.captions.attentive.publish import is_attentive, publish
from training.captions.attentive.recipe import train
from training.captions.attentive.sights import encoders, extract
from training.captions.scores import score
from training.run import Run, RunError

COUNTS = {"train": 4, "val": 2, "test": 2}
CONFIG = replace(
    PRESETS["attentive"],
    views=1,
    min_count=1,
    embedding_size=8,
    hidden_size=8,
    attention_size=8,
    steps=2,
    batch_size=4,
    text_batch=2,
    reward_steps=1,
    reward_batch=2,
    samples=2,
    length=6,
    every=2,
    precision="32-true",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a collection, sentences, random weights of the encoder and the fake detector."""
    folder = tmp_path_factory.mktemp("files")
    captions = ("A {colour} plate.", "One {colour} dog.", "A dog.", "The cat.")
    write_plates(folder / "plates", COUNTS, 2, captions)
    (folder / "text").write_text("A dog eats.\n\nA cat sleeps.\n")
    torch.manual_seed(1)
    weights = EfficientNetLite2().state_dict() | {"_fc.weight": torch.zeros(3, 3)}
    torch.save(weights, folder / "weights.pth")
    (folder / "detector.onnx").write_bytes(detector())
    return folder


@pytest.fixture(autouse=True)
def without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (publishing, validation):
        monkeypatch.setattr(module, "score", partial(score, java=None))
    for name in ("FITTED", "FRESH"):
        monkeypatch.setattr(attentive_publishing, name, 6)


@pytest.fixture(scope="module")
def finished(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "score", partial(score, java=None))
        seen_by = encoders(files / "weights.pth", files / "detector.onnx")
        source = collections.source(files / "plates", "free for all")
        corpus = data.load([source], [files / "text"], seen_by, views=1, min_count=1, cache=files / "cache")
        run = Run(tmp_path_factory.mktemp("runs") / "finished")
        assert train(CONFIG, corpus, run)
    return run


def test_a_finished_run_becomes_a_bundle_that_is_served(finished: Run, files: Path, tmp_path: Path) -> None:
    assert is_attentive(finished)
    folder = publish(finished, tmp_path / "store", name="plates", version="1")
    bundle = bundles.read(folder)
    metrics = bundle.manifest.metrics
    assert {"test_cider", "valid_cider", "untagged_valid_cider", "valid_cider_plates", "int8_cost"} <= {*metrics}
    assert metrics["torch_difference"] < 1e-3
    assert metrics["valid_repeats"] == 0
    assert metrics["int8_cosine"] > 0.9
    assert metrics["int8_objects"] == 1
    assert {"pointing", "centre", "deletion", "random", "neutral_gendered", "neutral_cost"} <= {*metrics}
    assert {"cnn.int8.onnx", "cnn.fp32.onnx", "detector.onnx"} <= {*bundle.manifest.files}
    assert bundle.manifest.corpus.terms == "free for all"
    card = bundle.text("README.md")
    assert "2 caption sentences" in card
    assert "| CIDEr |" in card
    predictor = load_predictor(bundle)
    assert isinstance(predictor, CaptionsPredictor)
    content = (files / "plates" / "test0.png").read_bytes()
    (answer,) = answer_all(predictor, [predictor.prepare(Describe(content))])
    assert "cat" in [tag.label for tag in answer.tags]
    assert answer.confidence is not None
    assert 0 <= answer.confidence <= 1
    assert 0 <= metrics["rejected"] <= 1


def test_an_unfinished_run_is_rejected(finished: Run, tmp_path: Path) -> None:
    checkpoint = torch.load(finished.checkpoint)
    checkpoint["progress"]["step"] = 2
    cut = Run(tmp_path / "cut")
    cut.folder.mkdir()
    for name in ("config.json", "source.json", "environment.json", "result.json"):
        (cut.folder / name).write_bytes((finished.folder / name).read_bytes())
    torch.save(checkpoint, cut.checkpoint)
    with pytest.raises(RunError, match="expected 3 steps, found 2"):
        publish(cut, tmp_path / "store")


def test_sights_are_kept_and_wrong_weights_are_rejected(files: Path, finished: Run) -> None:
    assert finished.checkpoint.exists()  # the photographs were seen
    seen_by = encoders(files / "weights.pth", files / "detector.onnx")
    photos = collections.photos(collections.source(files / "plates"))
    kept = [*(files / "cache").rglob("*.npz")]
    assert len(kept) == len(photos)
    stamps = [path.stat().st_mtime_ns for path in kept]
    found = extract(collections.contents(photos), seen_by, 1, files / "cache").found
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    assert {sight.grids.shape for sight in found.values()} == {(1, 81, 352)}
    torch.save({"a": torch.zeros(3)}, files / "wrong.pth")
    with pytest.raises(CorpusError, match=r"wrong\.pth: expected the weights of EfficientNet-Lite2"):
        encoders(files / "wrong.pth", files / "detector.onnx")


def test_measures_of_captions() -> None:
    assert repeats("a man in a blue shirt is wearing a blue shirt")
    assert not repeats("a man in a shirt and a man in a hat")
    dog, cup = (CaptionTag(label, 0.8, [0, 0, 1, 1]) for label in ("dog", "cup"))
    answers = [Description("a puppy and a pizza", -1.0, [], tags=[dog, cup]), Description("a cat", -1.0, [])]
    found = measures([*answers, answers[1]], [["a dog"], ["a kitten"], ["a tree"]])
    assert found == {
        "named": 1 / 2,
        "grounded": 2 / 4,
        "repeats": 0.0,
        "distinct": pytest.approx(2 / 3),
        "commonest": pytest.approx(2 / 3),
    }


def test_neutral_words_replace_gendered_ones() -> None:
    assert neutralised("A man and his mother.") == "a person and their parent"
    assert gendered(["A man and his mother.", "a person"]) == 3
