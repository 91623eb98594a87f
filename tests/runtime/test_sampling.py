"""Sampling of tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runtime.sampling import Uniform, sample

PROBABILITIES = np.array([0.1, 0.4, 0.0, 0.3, 0.2])
with np.errstate(divide="ignore"):
    VALUES = np.log(PROBABILITIES).astype(np.float32)
GRID = (np.arange(20_000) + 0.5) / 20_000


def frequencies(temperature: float, top_p: float) -> list[float]:
    found = [sample(VALUES, temperature, top_p, float(uniform)) for uniform in GRID]
    return [float(share) for share in np.bincount(found, minlength=len(VALUES)) / len(GRID)]


def test_tokens_are_drawn_by_their_probabilities() -> None:
    assert frequencies(1, 1) == pytest.approx(PROBABILITIES, abs=1e-3)


def test_a_temperature_divides_the_log_probabilities() -> None:
    squared = PROBABILITIES**2
    assert frequencies(0.5, 1) == pytest.approx(squared / squared.sum(), abs=1e-3)
    assert frequencies(1e-300, 1) == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.89, [1, 3, 4]), (1e-300, [1])]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int]) -> None:
    expected = np.zeros(len(VALUES))
    expected[kept] = PROBABILITIES[kept] / PROBABILITIES[kept].sum()
    assert frequencies(1, top_p) == pytest.approx(expected, abs=1e-3)


@given(
    values=st.lists(st.floats(-100, 0, width=32), min_size=1, max_size=9),
    temperature=st.floats(1e-9, 2),
    top_p=st.floats(1e-9, 1),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_sample_is_one_of_the_kept_tokens(
    values: list[float], temperature: float, top_p: float, uniform: float
) -> None:
    array = np.array(values, np.float32)
    chosen = sample(array, temperature, top_p, uniform)
    likelier = np.exp((array.astype(float) - array.max()) / temperature)
    assert likelier[likelier > likelier[chosen]].sum() <= top_p * likelier.sum() * (1 + 1e-9)


def test_uniform_numbers_depend_on_seed_prompt_choice_and_step() -> None:
    first = Uniform(1, [2, 3], 0)
    assert first.at(5) == Uniform(1, [2, 3], 0).at(5)
    others = [Uniform(2, [2, 3], 0), Uniform(1, [2, 4], 0), Uniform(1, [23], 0), Uniform(1, [2, 3], 1)]
    numbers = [each.at(5) for each in others] + [first.at(step) for step in range(1000)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    assert np.mean([first.at(step) for step in range(1000)]) == pytest.approx(0.5, abs=0.05)
