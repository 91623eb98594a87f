"""CTC: the best path without repetitions and blanks, and the probability of labels as the sum over all paths."""

from itertools import groupby, product

import numpy as np
import pytest

from app.runtime.ctc import best_path, probability

BLANK = 2


def reduced(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in groupby(path) if label != BLANK]


def test_repetitions_and_blanks_are_removed_and_spans_kept() -> None:
    logits = np.full((7, 3), -9.0)
    logits[range(7), [2, 0, 0, 2, 0, 1, 2]] = 9.0
    path = best_path(logits)
    assert path.digits == [0, 0, 1]
    assert path.spans == [(1, 3), (4, 5), (5, 6)]
    assert min(path.confidences) > 0.99


def test_nothing_is_read_from_blanks() -> None:
    logits = np.zeros((4, 3))
    logits[:, BLANK] = 5
    assert best_path(logits).digits == []


@pytest.mark.parametrize("labels", [[], [0], [1, 0], [0, 0], [0, 1, 0], [1, 1]])
def test_a_probability_is_the_sum_over_all_paths(labels: list[int]) -> None:
    logits = np.random.default_rng(1).normal(size=(5, 3))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    paths = [path for path in product(range(3), repeat=5) if reduced(path) == labels]
    expected = sum(float(np.prod([shares[step, label] for step, label in enumerate(path)])) for path in paths)
    assert probability(logits, labels) == pytest.approx(expected)


def test_more_labels_than_steps_are_impossible() -> None:
    assert probability(np.zeros((1, 3)), [0, 1]) == 0
