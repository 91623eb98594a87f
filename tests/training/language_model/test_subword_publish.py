"""From a run of the subword recipe to a bundle that is measured, proved and served."""

import hashlib
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from app import bundle as bundles
from app.bundle import Bundle
from app.main import create_app
from app.models.gated_recurrence import GatedRecurrentLanguageModel
from app.runtime.families.language_model import LanguageModelPredictor, Suggest, Suggestions
from app.runtime.loading import load_predictor
from app.runtime.predictor import Resources, answer_all
from app.runtime.scores import TextScore
from app.runtime.scoring import Score
from app.settings import Settings
from tests.api.conftest import talk
from training.__main__ import main
from training.corpora.documents import DocumentCorpus
from training.language_model import subword_publish
from training.language_model.subword_publish import publish
from training.language_model.subword_recipe import SubwordLanguageModelConfig, build, evaluate, train
from training.run import Run, RunError

GRAPHS = {f"{graph}.{precision}.onnx" for graph in ("recurrent", "softmax") for precision in ("fp32", "int8")}
FILES = GRAPHS | {"README.md", "curves.png", "typing.png", "probe.json", "tokenizer.json", "weights.safetensors"}


@pytest.fixture(scope="session")
def subword_run(
    document_corpus: DocumentCorpus,
    subword_config: SubwordLanguageModelConfig,
    documents_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """A finished run named `letters`. Read only: copy it before a change."""
    run = Run(tmp_path_factory.mktemp("runs") / "letters")
    train(subword_config, document_corpus, run)
    shutil.copyfile(documents_folder / "tokenizer.json", run.folder / "tokenizer.json")
    return run


@pytest.fixture(scope="session")
def published(subword_run: Run, documents_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    store = tmp_path_factory.mktemp("store")
    return bundles.read(publish(subword_run, store, version="v1", data=[documents_folder]))


@pytest.fixture
def copied(subword_run: Run, tmp_path: Path) -> Run:
    shutil.copytree(subword_run.folder, tmp_path / "copied")
    return Run(tmp_path / "copied")


def average(run: Run, config: SubwordLanguageModelConfig) -> tuple[GatedRecurrentLanguageModel, Mapping[str, object]]:
    """The module with the averaged weights, in the bundle's precision."""
    model = build(config)
    model.load_state_dict(torch.load(run.checkpoint, weights_only=False)["average"])
    model = model.half().float().eval()
    return model, model.state_dict()


def test_the_bundle_holds_all_that_serving_takes(
    published: Bundle, subword_run: Run, document_corpus: DocumentCorpus
) -> None:
    manifest = published.manifest
    assert manifest.files.keys() == FILES
    assert (manifest.family, manifest.model, manifest.version) == ("language_model", "letters", "v1")
    assert (manifest.cell, manifest.normalisation) == ("mingru", "subword")
    assert manifest.vocabulary_sha256 == hashlib.sha256(published.content("tokenizer.json")).hexdigest()
    assert manifest.corpus.sha256 == document_corpus.sha256
    assert manifest.config == {"cell": "mingru", **subword_run.read("config.json")}


def test_bits_a_byte_are_those_of_the_module(
    published: Bundle, subword_run: Run, document_corpus: DocumentCorpus, subword_config: SubwordLanguageModelConfig
) -> None:
    metrics = published.manifest.metrics
    model, weights = average(subword_run, subword_config)
    expected = evaluate(model, weights, document_corpus, None, subword_config)  # type: ignore[arg-type]
    assert metrics["valid_bits_per_byte"] == pytest.approx(expected["macro"], rel=0.01)
    assert metrics["sample_bits_per_byte_fp32"] == pytest.approx(expected["macro"], rel=1e-5)
    assert metrics["int8_cost"] == metrics["sample_bits_per_byte_int8"] - metrics["sample_bits_per_byte_fp32"]
    registers = {name.split("/")[1] for name in metrics if name.startswith("valid_bits_per_byte/")}
    assert registers == {"SMS", "e-mail", "assistant tasks"}
    assert 0 < metrics["torch_difference"] < 1e-4
    assert metrics["typing/bits a byte"] == pytest.approx(metrics["valid_bits_per_byte"])  # of so little text, all
    assert 0 <= metrics["contrast_auc/one non-word"] <= 1


def test_the_served_bundle_repeats_its_recorded_answers(published: Bundle) -> None:
    predictor = load_predictor(published)  # raises unless the answers are as recorded
    assert predictor.precision == published.manifest.served
    assert published.json("probe.json")["payload"] == {"text": "Thanks for your", "top_k": 5}


@pytest.mark.parametrize(("may_cost", "served"), [(math.inf, "int8"), (-math.inf, "fp32")])
def test_int8_serves_unless_it_costs_too_much(
    may_cost: float,
    served: str,
    subword_run: Run,
    documents_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(subword_publish, "INT8_MAY_COST", may_cost)
    manifest = bundles.read(publish(subword_run, tmp_path, data=[documents_folder])).manifest
    assert manifest.served == served
    # of so little text the sample is the whole
    assert manifest.metrics["valid_bits_per_byte"] == manifest.metrics[f"sample_bits_per_byte_{served}"]


def test_the_card_has_sources_with_their_terms_results_and_limitations(published: Bundle) -> None:
    card = published.text("README.md")
    assert card.startswith("# letters v1\n")
    assert "| sms | text messages, many in Singapore English | 240 | free for research" in card
    assert f"| macro | {published.manifest.metrics['valid_bits_per_byte']:.3f} |" in card
    assert "![validation by register](curves.png)" in card
    assert "![typing by register](typing.png)" in card
    assert "| one non-word | " in card
    assert "Provisional" not in card
    assert "$" not in card


def test_an_unfinished_run_is_published_only_when_that_is_wanted(
    subword_config: SubwordLanguageModelConfig, document_corpus: DocumentCorpus, documents_folder: Path, tmp_path: Path
) -> None:
    run, store = Run(tmp_path / "run"), tmp_path / "store"
    assert not train(subword_config, document_corpus, run, minutes=0)
    shutil.copyfile(documents_folder / "tokenizer.json", run.folder / "tokenizer.json")
    with pytest.raises(RunError, match=f"{run.folder}: expected 40 finished steps, found 1; go on with --resume"):
        publish(run, store, data=[documents_folder])
    bundle = bundles.read(publish(run, store, data=[documents_folder], unfinished=True))
    assert "Provisional: 1 of 40 steps of its training are done." in bundle.text("README.md")
    assert "curves.png" not in bundle.manifest.files  # nothing was recorded yet
    assert "curves.png" not in bundle.text("README.md")
    assert "typing.png" not in bundle.manifest.files  # measured once the training ends
    load_predictor(bundle)


def test_texts_that_changed_since_the_training_are_rejected(
    subword_run: Run, documents_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(documents_folder, tmp_path / documents_folder.name)
    folder = tmp_path / documents_folder.name
    (folder / "sms.valid.txt").write_text("Something else.\n")
    with pytest.raises(RunError, match=r"started on other texts: sha256 of .*/sms\.valid\.txt is"):
        publish(subword_run, tmp_path / "store", data=[folder])
    (folder / "sms.valid.txt").unlink()
    with pytest.raises(RunError, match="data: expected the validation texts of the run, found none of sms"):
        publish(subword_run, tmp_path / "store", data=[folder])
    with pytest.raises(RunError, match="data: expected the folders of the run's texts, found none"):
        publish(subword_run, tmp_path / "store")


PAYLOADS: tuple[Suggest | Score, ...] = (
    Suggest("", 3),
    Suggest("Thanks for your ", 3),
    Suggest("Thanks for your help. I", 3, complete=True),
    Suggest("See you ", 3, words=3),
    Score("Thanks for your help.\nI don't know", per_token=True, alternatives=2),
    Score("caf\u00e9 \U0001f600 \ud800 \u4f60\u597d", per_token=True, alternatives=2),
    Score(" ".join(["See you at 10"] * 30), per_token=True),
)


@pytest.mark.parametrize("chunk", [1, 7, 32])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_an_answer_is_the_same_whatever_the_cache_the_chunk_and_the_batch(
    published: Bundle, chunk: int, cache_bytes: int
) -> None:
    alone = LanguageModelPredictor.open(published, "int8", Resources())
    expected = [comparable(answer_all(alone, [alone.prepare(payload)])[0]) for payload in PAYLOADS]
    other = LanguageModelPredictor.open(published, "int8", Resources(cache_bytes=cache_bytes), chunk=chunk)
    for _ in range(2):  # the second time from cached states
        found = answer_all(other, [other.prepare(payload) for payload in PAYLOADS])
        assert [comparable(answer) for answer in found] == expected


def comparable(answer: Suggestions | TextScore) -> object:
    """The answer without what depends on the cache and on the order of sums."""
    return answer.suggestions if isinstance(answer, Suggestions) else answer.token_scores


def test_the_score_of_a_text_is_that_of_its_parts_one_after_the_other(published: Bundle) -> None:
    predictor = LanguageModelPredictor.open(published, "int8", Resources())
    (whole,) = answer_all(predictor, [predictor.prepare(Score("Thanks for your help", per_token=True))])
    (first,) = answer_all(predictor, [predictor.prepare(Score("Thanks for", per_token=True))])
    common = len(first.token_scores) - 1  # without its end
    assert whole.token_scores[:common] == first.token_scores[:common]


@pytest.mark.anyio
async def test_the_service_answers_with_the_bundle(published: Bundle) -> None:
    app = create_app(Settings(store=published.folder.parents[1]))
    async with app.router.lifespan_context(app) as state, talk(app, state) as client:
        assert state
        await state["registry"].opened()
        suggested = (await client.post("/next-word", json={"text": "Thanks for your ", "top_k": 2})).json()
        scored = (await client.post("/perplexity", json={"text": "Thanks \U0001f600"})).json()["results"][0]
    assert [type(each["text"]) for each in suggested["suggestions"]] == [str, str]
    assert scored["unknown_tokens"] == 0
    assert scored["bits_per_byte"] > 0


def test_one_command_publishes(
    copied: Run, documents_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["publish", copied.folder, "--store", tmp_path / "store", "--name", "everyday", "--version", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["training", *map(str, [*arguments, "--data", documents_folder])])
        main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "store" / "everyday" / "1")
    assert bundles.current(tmp_path / "store", "everyday") == "1"
