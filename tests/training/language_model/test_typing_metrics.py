"""Tests of the simulated writer and its metrics."""

from collections.abc import Sequence

import numpy as np
import pytest

from training.language_model.typing_metrics import (
    Counts,
    Query,
    auc,
    confidence_interval,
    measure,
    register_means,
    total,
)

DOCUMENT = "Thanks for your help.\nSee you!"


def nothing(queries: Sequence[Query]) -> list[list[str]]:
    return [[] for _ in queries]


def oracle(queries: Sequence[Query]) -> list[list[str]]:
    """Suggest the next word of DOCUMENT."""
    return [["no", DOCUMENT[len(query.context) :].split()[0].strip(".!")] for query in queries]


def test_without_suggestions_nothing_is_saved() -> None:
    counts = total(measure([DOCUMENT], nothing))
    assert counts.words == 6
    assert counts.keys == counts.characters == len("ThanksforyourhelpSeeyou") + 6 + 2
    assert counts.metrics()["keystroke_savings"] == 0


def test_an_accepted_word_costs_one_key() -> None:
    counts = total(measure([DOCUMENT], oracle))
    assert counts.keys == 6 + 2
    assert (counts.top1, counts.top3) == (0, 6)


def test_the_writer_types_until_the_word_is_offered() -> None:
    seen: list[Query] = []

    def after_two(queries: Sequence[Query]) -> list[list[str]]:
        seen.extend(queries)
        return [["helpful", "helps", "help"] if query.typed == "he" else ["a", "b", "c", "help"] for query in queries]

    (counts,) = measure(["help"], after_two)
    assert [query.typed for query in seen] == ["", "h", "he"]
    assert counts == Counts(words=1, keys=3, characters=5)


def test_case_counts_unless_it_is_ignored() -> None:
    (counts,) = measure(["Paris"], lambda queries: [["paris"] for _ in queries])
    assert (counts.top1, counts.top3, counts.top1_folded, counts.top3_folded) == (0, 0, 1, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_results_do_not_depend_on_the_batch(batch_size: int) -> None:
    documents = ["help me", "", "...", "the the the", "Don't stop"]

    def hashed(queries: Sequence[Query]) -> list[list[str]]:
        return [["the", "stop" if len(query.context) % 2 else "me"] for query in queries]

    expected = [total(measure([document], hashed)) for document in documents]
    assert measure(documents, hashed, batch_size=batch_size) == expected


def test_no_document_is_started_after_enough_words() -> None:
    results = measure(["one two"] * 10, nothing, batch_size=1, most_words=5)
    assert len(results) == 3


def test_a_document_without_words_has_no_metrics() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        total(measure(["..."], nothing)).metrics()


def test_the_interval_contains_the_value_and_shrinks_with_documents() -> None:
    generator = np.random.default_rng(1)
    documents = [Counts(words=10, top1=int(generator.integers(0, 6)), characters=1) for _ in range(400)]
    value = total(documents).metrics()["top1"]
    few_low, few_high = confidence_interval(documents[:20], "top1", generator)
    low, high = confidence_interval(documents, "top1", generator)
    assert low < value < high
    assert high - low < few_high - few_low


def test_registers_average_their_measured_sources() -> None:
    registers = {"news": ("bbc", "abc"), "blogs": ("blogs",), "SMS": ("sms",)}
    assert register_means({"bbc": 1.0, "abc": 3.0, "sms": 5.0}, registers) == {"news": 2.0, "SMS": 5.0}


def test_auc_counts_pairs_and_halves_ties() -> None:
    assert auc([1, 2], [3, 4]) == 1
    assert auc([3, 4], [1, 2]) == 0
    assert auc([1, 1], [1, 1]) == 0.5
    genuine, spoilt = [1.0, 2.5, 3.0], [2.0, 2.5, 4.0]
    pairs = [(s > g) + (s == g) / 2 for s in spoilt for g in genuine]
    assert auc(genuine, spoilt) == pytest.approx(sum(pairs) / len(pairs))
