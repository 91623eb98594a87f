"""Tests of the simulated writer."""

from collections.abc import Sequence

import pytest

from training.language_model.typing_metrics import Counts, Query, measure

DOCUMENT = "Thanks for your help.\nSee you!"


def nothing(queries: Sequence[Query]) -> list[list[str]]:
    return [[] for _ in queries]


def oracle(queries: Sequence[Query]) -> list[list[str]]:
    """Suggest the next word of DOCUMENT."""
    return [["no", DOCUMENT[len(query.context) :].split()[0].strip(".!")] for query in queries]


def test_without_suggestions_nothing_is_saved() -> None:
    (counts,) = measure([DOCUMENT], nothing)
    assert counts.words == 6
    assert counts.characters == len("ThanksforyourhelpSeeyou") + 6 + 2
    assert counts.saved == 0


def test_an_accepted_word_costs_one_key() -> None:
    (counts,) = measure([DOCUMENT], oracle)
    assert counts.saved == counts.characters - (6 + 2)
    assert (counts.top1, counts.top3) == (0, 6)


def test_the_writer_types_until_the_word_is_offered() -> None:
    seen: list[Query] = []

    def after_two(queries: Sequence[Query]) -> list[list[str]]:
        seen.extend(queries)
        return [["helpful", "helps", "help"] if query.typed == "he" else ["a", "b", "c", "help"] for query in queries]

    (counts,) = measure(["help"], after_two)
    assert [query.typed for query in seen] == ["", "h", "he"]
    assert counts == Counts(words=1, characters=5, saved=2)


def test_case_counts_unless_it_is_ignored() -> None:
    (counts,) = measure(["Paris"], lambda queries: [["paris"] for _ in queries])
    assert (counts.top1, counts.top3, counts.top1_folded, counts.top3_folded) == (0, 0, 1, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_results_do_not_depend_on_the_batch(batch_size: int) -> None:
    documents = ["help me", "", "...", "the the the", "Don't stop"]

    def hashed(queries: Sequence[Query]) -> list[list[str]]:
        return [["the", "stop" if len(query.context) % 2 else "me"] for query in queries]

    finished: list[int] = []
    expected = [measure([document], hashed)[0] for document in documents]
    assert measure(documents, hashed, batch_size=batch_size, progress=finished.append) == expected
    assert sorted(finished) == sorted(map(len, documents))
