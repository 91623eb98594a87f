"""Steps bounded by time."""

import pytest

from app.runtime.recurrent_engine import Pace


def test_the_slowness_is_that_of_the_latest_steps() -> None:
    pace = Pace(0.5, weight=10)
    assert pace.slowness == 1
    for _ in range(1000):
        pace.observe(4, 6.0)
    assert pace.slowness == pytest.approx(3)
    for _ in range(1000):
        pace.observe(4, 4.0)
    assert pace.slowness == pytest.approx(2, rel=1e-3)


def test_a_large_step_counts_more_than_a_small_one() -> None:
    pace = Pace(1.0, weight=0.001)
    pace.observe(99, 198.0)
    pace.observe(1, 100.0)
    assert pace.slowness == pytest.approx((99 * 0.99 * 2 + 100) / (99 * 0.99 + 1), rel=1e-3)


def test_a_fast_model_gets_no_longer_steps() -> None:
    pace = Pace(1.0, weight=1)
    pace.observe(1000, 1.0)
    assert pace.slowness == 1
