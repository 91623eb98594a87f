"""From a finished run to a bundle that is measured, proved and served."""

import hashlib
import json
import math
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from app import bundle as bundles
from app.bundle import Bundle
from app.errors import BundleError, CorpusError
from app.models.language_model import parameter_count
from app.runtime.families.language_model import Suggest
from app.runtime.loading import load_predictor
from training.language_model import publish as publishing
from training.language_model.data import PTB_CAVEATS, Corpus
from training.language_model.publish import model_card, publish, torch_difference, trained
from training.language_model.recipe import LanguageModelConfig, perplexity, train
from training.run import Run, RunError

FILES = {
    "README.md",
    "curves.png",
    "probe.json",
    "recurrent.fp32.onnx",
    "recurrent.int8.onnx",
    "softmax.fp32.onnx",
    "softmax.int8.onnx",
    "vocabulary.txt",
    "weights.safetensors",
}


@pytest.fixture
def config(finished: Run) -> LanguageModelConfig:
    described = finished.read("config.json")
    return LanguageModelConfig(**described | {"hidden_sizes": tuple(described["hidden_sizes"])})


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Run:
    """A finished run that a test may change."""
    shutil.copytree(finished.folder, tmp_path / "copied")
    return Run(tmp_path / "copied")


@pytest.fixture
def published(finished: Run, tmp_path: Path) -> Bundle:
    return bundles.read(publish(finished, tmp_path / "store", version="v1"))


def test_a_bundle_is_in_the_store_as_the_current_version(published: Bundle, tmp_path: Path) -> None:
    store = tmp_path / "store"
    assert published.folder == store / "tiny" / "v1"
    assert bundles.models(store) == ["tiny"]
    assert bundles.current(store, "tiny") == "v1"
    assert published.manifest.files.keys() == FILES
    assert {path.name for path in published.folder.iterdir()} == FILES | {"manifest.json", "manifest.sha256"}


def test_the_manifest_records_the_origin_of_the_model(
    published: Bundle, finished: Run, config: LanguageModelConfig, corpus: Corpus
) -> None:
    manifest = published.manifest
    assert (manifest.family, manifest.model, manifest.version) == ("language_model", "tiny", "v1")
    assert manifest.config == json.loads(json.dumps(asdict(config)))
    assert manifest.commit == finished.read("environment.json")["commit"]
    assert manifest.normalisation == "whitespace"
    assert manifest.vocabulary_sha256 == hashlib.sha256(published.path("vocabulary.txt").read_bytes()).hexdigest()
    assert published.text("vocabulary.txt").split("\n") == list(corpus.vocabulary.tokens)
    assert manifest.corpus.model_dump() == {"name": "tiny", "terms": "free for all", "sha256": corpus.sha256}
    assert manifest.parameters == parameter_count(trained(finished, config))


def test_the_figures_are_those_of_the_module_on_the_whole_texts(
    published: Bundle, finished: Run, config: LanguageModelConfig, corpus: Corpus
) -> None:
    metrics, model, end = published.manifest.metrics, trained(finished, config), corpus.vocabulary.end
    for split in ("valid", "test"):
        ids = getattr(corpus, split)
        assert metrics[f"{split}_tokens"] == len(ids)
        assert metrics[f"{split}_perplexity_fp32"] == pytest.approx(perplexity(model, ids, end), rel=1e-5)
        assert metrics[f"{split}_perplexity_int8"] == pytest.approx(perplexity(model, ids, end), rel=0.02)
        assert metrics[f"{split}_perplexity"] == metrics[f"{split}_perplexity_{published.manifest.served}"]
    cost = metrics["valid_perplexity_int8"] / metrics["valid_perplexity_fp32"] - 1
    assert metrics["int8_cost"] == pytest.approx(cost)
    assert 0 < metrics["torch_difference"] < 1e-4


def test_the_difference_from_torch_is_seen_where_there_is_one(
    published: Bundle, finished: Run, config: LanguageModelConfig, corpus: Corpus
) -> None:
    model = trained(finished, config)
    model.output.bias.data[3] += 0.5
    assert torch_difference(model, published, corpus) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("may_cost", "served"), [(math.inf, "int8"), (-math.inf, "fp32")])
def test_int8_serves_unless_it_costs_too_much(
    may_cost: float, served: str, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "INT8_MAY_COST", may_cost)
    manifest = bundles.read(publish(finished, tmp_path)).manifest
    assert manifest.served == served
    assert manifest.metrics["test_perplexity"] == manifest.metrics[f"test_perplexity_{served}"]


def test_the_probe_is_replayed_by_the_server(published: Bundle, corpus: Corpus) -> None:
    probe = published.json("probe.json")
    words = Suggest(**probe["payload"]).text.split()
    assert set(words) <= set(corpus.vocabulary.tokens) - {"<eos>", "<unk>"}
    assert len(set(words)) == len(words)  # the commonest of the vocabulary: no line of the corpus
    predictor = load_predictor(published)  # raises unless the answers are as recorded
    answers = probe["answers"][published.manifest.served]
    assert len(answers) == 5
    found = predictor.probe(probe["payload"])
    for (text, value), (recorded, recorded_value) in zip(found, answers, strict=True):
        assert text == recorded
        assert value == pytest.approx(recorded_value, abs=1e-5)


def test_the_model_card_has_terms_metrics_and_limits(published: Bundle) -> None:
    card, manifest = published.text("README.md"), published.manifest
    assert card.startswith("# tiny v1\n")
    for reported in (
        "free for all",
        "12 -> 16 -> 12",
        "2 epochs",
        f"{manifest.parameters:,} parameters",
        f"{manifest.metrics['valid_perplexity_int8']:.2f}",
        f"{manifest.metrics['test_perplexity_fp32']:.2f}",
        f"as served ({manifest.served})",
        "![learning curve](curves.png)",
        "## Limitations",
    ):
        assert reported in card
    assert "$" not in card.replace("$1 a word", "")
    assert published.path("curves.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_the_model_card_states_the_caveats_of_its_corpus_alone(published: Bundle, finished: Run) -> None:
    manifest = published.manifest
    reported = published.text("README.md").split("## Limitations\n")[1]
    assert "that text's view of the world.\n- It knows of banks alone, at $1 a word.\n- A low perplexity" in reported
    reported = model_card(manifest)
    assert "that text's view of the world.\n- A low perplexity" in reported
    assert not any(word in reported for word in ("Wall Street", "1989", "Treebank", "stands for any number"))
    reported = model_card(manifest, PTB_CAVEATS)
    assert all(f"\n- {caveat}\n" in reported for caveat in PTB_CAVEATS)


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"epochs": 1}, "The corpus `tiny`, 1 epoch. "),
        ({"epochs": 3}, "The corpus `tiny`, 3 epochs. "),
        ({"tied": True}, "units, output tied to the embedding, "),
        ({"tied": False}, "units, an output layer of its own, "),
    ],
)
def test_the_model_card_reads_as_english(published: Bundle, changes: dict[str, Any], reported: str) -> None:
    manifest = published.manifest
    assert reported in model_card(manifest.model_copy(update={"config": manifest.config | changes}))


def test_a_run_from_before_there_were_caveats_is_published(copied: Run, tmp_path: Path) -> None:
    described = copied.read("source.json")
    del described["caveats"]
    (copied.folder / "source.json").write_text(json.dumps(described))
    assert "banks" not in bundles.read(publish(copied, tmp_path / "store")).text("README.md")


def test_a_model_and_a_version_may_be_named(finished: Run, tmp_path: Path) -> None:
    folder = publish(finished, tmp_path, name="letters", version="2.0")
    assert folder == tmp_path / "letters" / "2.0"
    assert bundles.read(folder).manifest.corpus.name == "tiny"


def test_a_version_is_the_day_unless_it_is_named(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "gmtime", lambda: time.struct_time((2031, 2, 3, 4, 5, 6, 0, 34, 0)))
    assert publish(finished, tmp_path).name == "20310203"


def test_a_version_that_is_there_is_rejected_before_any_measuring(
    published: Bundle, finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in published.folder.iterdir()}

    def measure(*arguments: object) -> None:
        pytest.fail("minutes of measuring for a version that can't be published")

    monkeypatch.setattr(publishing, "measure", measure)
    with pytest.raises(BundleError, match=f"{published.folder}: expected an unpublished version"):
        publish(finished, tmp_path / "store", version="v1")
    assert {path: path.stat().st_mtime_ns for path in published.folder.iterdir()} == before


def test_an_unfinished_run_is_rejected(config: LanguageModelConfig, corpus: Corpus, tmp_path: Path) -> None:
    run, store = Run(tmp_path / "run"), tmp_path / "store"
    train(config, corpus, run, minutes=0)
    with pytest.raises(RunError, match=f"{run.folder}: expected 2 finished epochs, found 0; go on with --resume"):
        publish(run, store)
    assert not store.exists()


def test_a_run_without_a_checkpoint_is_rejected(copied: Run, tmp_path: Path) -> None:
    copied.checkpoint.unlink()
    with pytest.raises(RunError, match=f"{copied.checkpoint}: expected a checkpoint, found none"):
        publish(copied, tmp_path / "store")


def test_a_missing_run_is_rejected_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    with pytest.raises(RunError, match=f"{folder}/config.json: no such file: is {folder} the folder of a run?"):
        publish(Run(folder), tmp_path / "store")


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_text_that_changed_since_the_training_is_rejected(copied: Run, tmp_path: Path, split: str) -> None:
    described = copied.read("source.json")
    text = Path(described["files"][split])
    other = tmp_path / text.name
    other.write_bytes(text.read_bytes() + b"one more line\n")
    described["files"][split] = str(other)
    (copied.folder / "source.json").write_text(json.dumps(described))
    with pytest.raises(RunError, match=f"{copied.folder}: started on other texts: sha256 of {split} is"):
        publish(copied, tmp_path / "store")


def test_a_text_that_is_gone_is_rejected_by_name(copied: Run, tmp_path: Path) -> None:
    described = copied.read("source.json")
    described["files"]["valid"] = str(tmp_path / "gone.txt")
    (copied.folder / "source.json").write_text(json.dumps(described))
    with pytest.raises(CorpusError, match=f"{tmp_path}/gone.txt: can't be read"):
        publish(copied, tmp_path / "store")


def test_weights_are_those_that_the_bundle_keeps(finished: Run, config: LanguageModelConfig) -> None:
    for name, value in trained(finished, config).state_dict().items():
        assert (value == value.half().float()).all(), name


def test_a_run_of_fewer_epochs_than_its_configuration_is_unfinished(finished: Run, config: LanguageModelConfig) -> None:
    with pytest.raises(RunError, match="expected 3 finished epochs, found 2"):
        trained(finished, replace(config, epochs=3))
