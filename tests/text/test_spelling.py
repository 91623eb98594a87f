"""Tests of the spelling model of unknown words."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text.spelling import LONGEST, Spelling

WORDS = "company companies compared computer profits rose billion million workers".split()
SPELLING = Spelling(WORDS)


def test_what_is_spelled_like_the_words_is_likelier() -> None:
    like, unlike, foreign = map(SPELLING.log_probability, ("comput", "xqzjkw", "\u4eca\u5929\u5929\u6c14\u5f88\u597d"))
    assert like > unlike > foreign


def test_probabilities_sum_to_one_over_the_next_character() -> None:
    model = Spelling(["ab", "ac"])
    seen = "abc\udfff"
    after_a = [model._probability(f"\ud800a{character}") for character in seen]  # noqa: SLF001
    others = (0x110000 - len(seen)) * model._probability("\ud800az")  # noqa: SLF001
    assert sum(after_a) + others == pytest.approx(1)


@given(st.text())
def test_every_string_has_a_probability(text: str) -> None:
    assert -math.inf < SPELLING.log_probability(text) < 0


def test_a_long_word_costs_the_mean_of_its_first_characters() -> None:
    word = "companies" * 20
    first = SPELLING.log_probability(word[:LONGEST])
    assert SPELLING.log_probability(word) == pytest.approx(first * len(word) / LONGEST)
