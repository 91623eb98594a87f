"""The recipe: exact resume, windows, the schedule, and bits a byte as the evaluation defines them."""

import math
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from app.errors import SettingsError
from app.models.gated_recurrence import GatedRecurrentLanguageModel
from training.__main__ import main
from training.corpora import documents as data
from training.corpora.documents import DocumentCorpus, load
from training.language_model import subword_recipe as subword_language_model
from training.language_model.bits_per_byte import bits_per_byte
from training.language_model.subword_recipe import SubwordLanguageModelConfig, build, evaluate, rate, train
from training.run import Run, RunError
from training.session import Session


def weights(run: Run) -> dict[str, torch.Tensor]:
    state = torch.load(run.checkpoint, weights_only=False)
    return dict(state["model"]) | {f"average.{name}": value for name, value in state["average"].items()}


def test_a_run_stopped_anywhere_ends_as_an_undisturbed_one(
    document_corpus: DocumentCorpus,
    subword_config: SubwordLanguageModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, parts = Run(tmp_path / "whole"), Run(tmp_path / "parts")
    assert train(subword_config, document_corpus, whole)
    monkeypatch.setattr(Session, "stops", stop_every(11))
    times = 1
    while not train(subword_config, document_corpus, parts, resume=True):
        times += 1
    assert times == 4
    expected = weights(whole)
    assert {name for name, value in weights(parts).items() if not torch.equal(value, expected[name])} == set()
    assert parts.metrics() == whole.metrics()
    assert [entry["epoch"] for entry in whole.metrics()] == [10, 20, 30, 40]
    assert parts.read("result.json") == whole.read("result.json")


def stop_every(steps: int) -> object:
    calls, stops = iter(range(1, 10_000)), Session.stops

    def stop(session: Session, state: dict[str, Any]) -> bool:
        if next(calls) % steps == 0:
            session._deadline = -math.inf  # noqa: SLF001
        return stops(session, state)

    return stop


def test_steps_may_be_added_before_the_decay_and_nothing_else_changed(
    document_corpus: DocumentCorpus, subword_config: SubwordLanguageModelConfig, tmp_path: Path
) -> None:
    run, longer = Run(tmp_path / "run"), replace(subword_config, steps=80)
    assert not train(subword_config, document_corpus, run, minutes=0)
    with pytest.raises(RunError, match=r"learning_rate is 0\.1, was 0\.002"):
        train(replace(subword_config, learning_rate=0.1), document_corpus, run, resume=True)
    assert not train(longer, document_corpus, run, resume=True, minutes=0)
    assert run.read("config.json")["steps"] == 80


def test_steps_may_be_added_after_the_last_one_but_not_within_the_decay(
    document_corpus: DocumentCorpus, subword_config: SubwordLanguageModelConfig, tmp_path: Path
) -> None:
    run, short, longer = Run(tmp_path), replace(subword_config, steps=2), replace(subword_config, steps=4)
    decaying = replace(short, decay=1.0)
    assert not train(decaying, document_corpus, Run(tmp_path / "decaying"), minutes=0)  # one step
    with pytest.raises(RunError, match="steps is 4, was 2"):
        train(replace(decaying, steps=4), document_corpus, Run(tmp_path / "decaying"), resume=True)
    assert train(short, document_corpus, run)
    assert train(longer, document_corpus, run, resume=True)
    saved = torch.load(run.checkpoint, weights_only=False)
    assert saved["progress"]["step"] == 4
    assert run.read("config.json")["steps"] == 4


def test_the_rate_warms_up_stays_and_decays(subword_config: SubwordLanguageModelConfig) -> None:
    settings = replace(subword_config, steps=100, warm_up=10, decay=0.2, learning_rate=1.0)
    assert [rate(settings, step) for step in (0, 4, 9, 10, 80)] == pytest.approx([0.1, 0.5, 1, 1, 1])
    assert rate(settings, 85) == pytest.approx(0.5)
    assert 0 < rate(settings, 99) < 0.05


def test_bits_per_byte_is_the_cost_of_each_document_alone(
    document_corpus: DocumentCorpus, subword_config: SubwordLanguageModelConfig
) -> None:
    model = build(subword_config).eval()
    bits, size = 0.0, 0
    part, tokenizer = document_corpus.valid["sms"], document_corpus.tokenizer
    for start, end in zip(part.starts, part.starts[1:], strict=False):
        ids = torch.from_numpy(part.ids[start:end].astype("int64"))
        targets = torch.cat([ids[1:], ids[:1]])  # the next `<doc>` ends it
        hidden, _ = model(ids[:, None], model.initial_state(1))
        costs = torch.nn.functional.cross_entropy(model.logits(hidden[:, 0]), targets, reduction="sum")
        bits += costs.item() / math.log(2)
        size += len(tokenizer.decode(ids.tolist()).encode()) + 1
    assert size == part.size
    assert bits_per_byte(model, document_corpus, None, lanes=3, window=5)["sms"] == pytest.approx(bits / size, rel=1e-5)


def test_a_corpus_without_validation_texts_is_trained_on(
    document_corpus: DocumentCorpus, subword_config: SubwordLanguageModelConfig, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    assert train(replace(subword_config, steps=2), replace(document_corpus, valid={}), run)
    assert run.read("result.json") == {}


def test_macro_is_the_mean_of_registers_assistant_tasks_apart(
    document_corpus: DocumentCorpus, subword_config: SubwordLanguageModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = {"sms": 1.0, "aeslc": 2.0, "clinton": 4.0, "sgd": 100.0}
    monkeypatch.setattr(subword_language_model, "bits_per_byte", lambda *_: bits)
    model = build(subword_config)
    found = evaluate(model, model.state_dict(), document_corpus, None, subword_config)
    assert found == {"SMS": 1.0, "e-mail": 3.0, "assistant tasks": 100.0, "macro": 2.0}


def test_evaluation_leaves_the_weights_as_they_were(
    document_corpus: DocumentCorpus, subword_config: SubwordLanguageModelConfig
) -> None:
    model: GatedRecurrentLanguageModel = build(subword_config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(
        model, {name: torch.zeros_like(value) for name, value in before.items()}, document_corpus, 50, subword_config
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_field_out_of_its_range_is_rejected_by_name(subword_config: SubwordLanguageModelConfig) -> None:
    for name, wrong in (("vocabulary_size", 70_000), ("dropout", 1.0), ("decay", -0.1), ("most_repeats", 0.5)):
        with pytest.raises(SettingsError, match=f"^{name}: expected .+, found {wrong}$"):
            replace(subword_config, **{name: wrong})  # type: ignore[arg-type]


def test_one_command_trains_on_any_folder_and_goes_on(
    documents_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(data, "load", partial(load, cache=tmp_path / "cache"))
    sizes = ["--embedding-size", 8, "--width", 8, "--layers", 1, "--hidden-size", 8, "--inner-size", 8, "--steps", 3]
    sizes += ["--batch-size", 4, "--window", 7, "--negatives", 50, "--validate-every", 3, "--no-compiled"]
    command("tokenizer", "--data", documents_folder, "--output", tmp_path / "pieces.json", "--pieces", 300)
    assert f"{tmp_path / 'pieces.json'}: 300 pieces" in capsys.readouterr().out
    run, texts = tmp_path / "run", ["--data", documents_folder, "--tokenizer", tmp_path / "pieces.json"]
    training = ["subword-language-model", "everyday", "--run", run, *texts, *sizes]
    command(*training, "--minutes", 0)
    assert "go on with --resume" in capsys.readouterr().out
    command(*training, "--resume")
    assert Run(run).read("result.json")["valid_bits_per_byte/macro"] > 0
    assert Run(run).read("config.json")["vocabulary_size"] == 300


def command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["training", *map(str, arguments)])
        main()
