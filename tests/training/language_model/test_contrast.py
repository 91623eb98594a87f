"""Tests of the contrast sets and of how well scores tell them from English."""

import random
import re
from collections.abc import Sequence

import pytest

from training.language_model.contrast import (
    NGRAM_AUC,
    SPOILS,
    Separation,
    auc,
    contrast_sets,
    english_lines,
    evaluate,
    other_languages,
    table,
)

LINES = ["Thanks for your help with the garden.", "We won't see each other until Monday evening, I think."] * 5


def test_the_sets_are_the_same_each_time_and_spoil_every_line() -> None:
    sets = contrast_sets(LINES)
    assert sets == contrast_sets(LINES)
    assert sets.keys() == NGRAM_AUC.keys()
    for name, spoilt in sets.items():
        assert len(spoilt) == len(LINES), name
        assert all(one != line for one, line in zip(spoilt, LINES, strict=True)), name


@pytest.mark.parametrize("name", ["shuffled letters", "random letters", "keyboard runs", "one non-word"])
def test_word_lengths_and_signs_are_kept(name: str) -> None:
    for line, spoilt in zip(LINES, contrast_sets(LINES)[name], strict=True):
        assert re.sub("[A-Za-z]", "x", spoilt) == re.sub("[A-Za-z]", "x", line)


def test_one_word_alone_is_replaced_and_all_words_are_kept_shuffled() -> None:
    line = LINES[0]
    changed = [
        new != old
        for new, old in zip(SPOILS["one non-word"](line, random.Random(1)).split(), line.split(), strict=True)
    ]
    assert sum(changed) == 1
    assert sorted(SPOILS["shuffled words"](line, random.Random(1)).split()) == sorted(line.split())


def test_lines_are_drawn_from_each_source_and_long_enough() -> None:
    texts = {"a": ["Too short\n" + LINES[0]], "b": [LINES[1] + "\nmail <email> and say that you are not there"]}
    assert sorted(english_lines(texts, 10, random.Random(1))) == sorted(LINES[:2])


def test_other_languages_have_one_sentence_a_line() -> None:
    sentences = other_languages()
    assert len(sentences) == len(set(sentences)) >= 60
    assert all(len(sentence) >= 12 for sentence in sentences)


def test_a_score_that_counts_words_of_a_list_separates() -> None:
    known = {word for line in LINES for word in line.split()}

    def unknown_share(texts: Sequence[str]) -> list[float]:
        return [sum(word not in known for word in text.split()) / len(text.split()) for text in texts]

    found = evaluate(unknown_share, LINES)
    assert found["keyboard runs"] == Separation(1, 1)
    assert found["shuffled words"] == Separation(0.5, 0)
    assert "| shuffled words | 0.5000 | 0.0000 | 0.9484 |" in table({"list": found}).splitlines()


def test_auc_counts_pairs_and_halves_ties() -> None:
    assert auc([1, 2], [3, 4]) == 1
    assert auc([3, 4], [1, 2]) == 0
    assert auc([1, 1], [1, 1]) == 0.5
    genuine, spoilt = [1.0, 2.5, 3.0], [2.0, 2.5, 4.0]
    pairs = [(s > g) + (s == g) / 2 for s in spoilt for g in genuine]
    assert auc(genuine, spoilt) == pytest.approx(sum(pairs) / len(pairs))
