"""Each kind of image shows its digit, is reproducible, and differs from draw to draw."""

import numpy as np
import pytest

from tests.drawn_digits import draw
from training.digits.composing import Pixels
from training.digits.kinds import DIGIT_KINDS, DOTS, DOUBTFUL_KINDS, SEGMENTS, ComposeTwo, touching_digits, two_digits


@pytest.mark.parametrize("kind", [*DIGIT_KINDS, *DOUBTFUL_KINDS])
@pytest.mark.parametrize("digit", range(10))
def test_a_kind_is_an_image_with_contrast_and_depends_on_the_seed_alone(kind: str, digit: int) -> None:
    shape = draw(digit, np.random.default_rng(1))

    def composed(seed: int) -> Pixels:
        rng = np.random.default_rng(seed)
        return (
            DOUBTFUL_KINDS[kind](shape, shape, rng) if kind in DOUBTFUL_KINDS else DIGIT_KINDS[kind](shape, digit, rng)
        )

    first, same, *others = map(composed, (2, 2, *range(3, 12)))
    assert first.dtype == np.uint8
    assert first.ndim == 2 or first.shape[2] == 3
    assert np.ptp(first) > 60
    assert np.array_equal(first, same)
    assert not all(np.array_equal(first, other) for other in others)


def test_dots_and_segments_of_ten_digits_differ() -> None:
    assert len(set(DOTS)) == len(set(SEGMENTS)) == 10


@pytest.mark.parametrize("compose", [two_digits, touching_digits])
def test_an_image_of_two_digits_is_wider_than_high(compose: ComposeTwo) -> None:
    one, other = (draw(digit, np.random.default_rng(1)) for digit in (3, 8))
    pair = compose(one, other, np.random.default_rng(1))
    ink = np.abs(pair.astype(int) - pair[0, 0]) > 80
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    assert np.ptp(columns) > np.ptp(rows)
