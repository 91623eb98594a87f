"""Tests of the typing evaluation of a served model."""

from pathlib import Path

import pytest

from app import bundle as bundles
from app.errors import CorpusError
from app.runtime.families.language_model import LanguageModelPredictor
from app.runtime.loading import load_predictor
from training.language_model.typing_evaluation import (
    beginnings,
    earlier_texts,
    evaluate_typing,
    suggest_with,
    validation_sample,
)
from training.language_model.typing_metrics import Query

TEXTS = {"bbc": "the company said\n\nprofits rose", "aeslc": "does it do", "letters": "in the\n\nat\n\nin it"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.valid.txt").write_text(text)
        (tmp_path / f"{name}.train.txt").write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def predictor(tiny_store: Path) -> LanguageModelPredictor:
    found = load_predictor(bundles.read(tiny_store / "tiny" / "1"))
    assert isinstance(found, LanguageModelPredictor)
    return found


def test_a_sample_is_every_nth_document_of_each_source(folder: Path) -> None:
    assert validation_sample([folder], None)["letters"] == ["in the", "at", "in it"]
    assert validation_sample([folder], 2) == {
        "aeslc": ["does it do"],
        "bbc": ["the company said"],
        "letters": ["in the", "in it"],
    }
    assert validation_sample([folder], None, ["aeslc"]) == {"aeslc": ["does it do"]}


def test_a_missing_source_is_an_error_that_names_those_there_are(folder: Path) -> None:
    with pytest.raises(CorpusError, match="expected one of aeslc, bbc, letters, found 'blogs'"):
        validation_sample([folder], None, ["blogs"])


def test_a_served_model_suggests_next_words_and_completes_typed_ones(predictor: LanguageModelPredictor) -> None:
    suggest = suggest_with(predictor)
    queries = [Query("the ", ""), Query("the ", "pro"), Query("the (", "pro"), Query("", "pro")]
    following, *completions = suggest(queries)
    assert len(following) == 3
    assert completions == [["profits"]] * 3
    assert [suggest([query])[0] for query in queries] == [following, *completions]


def test_suggestions_are_static_unless_they_are_to_be_adapted(predictor: LanguageModelPredictor) -> None:
    query = Query("profits rose " * 20 + "profits ", "")
    later = Query("profits ", "", history="profits rose " * 20)
    static, adapted = (suggest_with(predictor, adapt=adapt)([query, later]) for adapt in (False, True))
    assert "rose" not in [first for first, *_ in static]
    assert [first for first, *_ in adapted] == ["rose", "rose"]


def test_the_history_of_a_text_is_the_earlier_text_of_its_writer(folder: Path) -> None:
    (folder / "sms.valid.txt").write_text("in the\n\nat\n\nin it")
    texts = validation_sample([folder], None, ["sms", "letters"])
    assert earlier_texts([folder], texts) == {"letters": ["", "", ""], "sms": ["", "in the", "in the\nat"]}


def test_writers_type_every_document_and_a_closed_vocabulary_has_no_bits(
    predictor: LanguageModelPredictor, folder: Path
) -> None:
    sources = evaluate_typing(predictor, validation_sample([folder], None)).sources
    assert {name: [counts.words for counts in found] for name, found in sources.items()} == {
        "aeslc": [3],
        "bbc": [3, 2],
        "letters": [2, 1, 2],
    }
    assert all(counts.bits == 0 for found in sources.values() for counts in found)


def test_long_texts_are_typed_up_to_a_number_of_words() -> None:
    assert beginnings(["a b\nc d", " e", "f g", ""], 3) == ["a b\nc", " e", "f g"]
