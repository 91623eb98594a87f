"""Tests of the typing evaluation: the served model's own suggestions, and the report."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from app import bundle as bundles
from app.errors import CorpusError
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.loading import load_predictor
from training.language_model.typing_evaluation import evaluate_typing, suggest_with, table
from training.language_model.typing_metrics import Query

TEXTS = {"bbc": "the company said\n\nprofits rose", "aeslc": "does it do", "sgd": "the the", "letters": "in the"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.valid.txt").write_text(text)
        (tmp_path / f"{name}.train.txt").write_text(text)
    return tmp_path


def constant(queries: Sequence[Query]) -> list[list[str]]:
    return [["the"] for _ in queries]


def test_a_register_is_the_mean_of_its_sources_and_tasks_are_left_out_of_the_macro(folder: Path) -> None:
    report = evaluate_typing(constant, [folder], most_words=None)
    assert report.by_source("top1") == {"bbc": 0.2, "aeslc": 0, "sgd": 1, "letters": 0.5}
    assert report.by_register("top1") == {"e-mail": 0, "news": 0.2, "assistant tasks": 1}
    assert report.macro("top1") == pytest.approx(0.1)
    lines = table(report).splitlines()
    assert "| **macro** | 10.0 | 10.0 | 5.0 |" in lines  # bbc: 27 keys for 30 characters
    assert "| sgd | 100.0 | 100.0 (100.0 to 100.0) | 2 |" in lines


def test_a_missing_source_is_an_error_that_names_those_there_are(folder: Path) -> None:
    with pytest.raises(CorpusError, match="expected one of aeslc, bbc, letters, sgd, found 'blogs'"):
        evaluate_typing(constant, [folder], most_words=None, only=["blogs"])


def test_a_served_model_suggests_next_words_and_completes_typed_ones(tiny_store: Path) -> None:
    predictor = load_predictor(bundles.read(tiny_store / "tiny" / "1"))
    assert isinstance(predictor, LanguageModelPredictor)
    suggest = suggest_with(predictor)
    queries = [Query("the ", ""), Query("the ", "pro"), Query("the (", "pro"), Query("", "pro")]
    following, *completions = suggest(queries)
    assert len(following) == 3
    assert completions == [["profits"]] * 3
    assert [suggest([query])[0] for query in queries] == [following, *completions]
