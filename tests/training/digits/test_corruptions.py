"""MNIST-C's corruptions follow the paper's definitions and draw from the given generator alone."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from training.digits.corruptions import CORRUPTIONS, Digit

BY_CHANCE = sorted(CORRUPTIONS.keys() - {"scale", "brightness", "stripe", "canny edges"})
BLACK = np.zeros((28, 28), np.uint8)


def bar() -> Digit:
    """Upright, four columns wide and twenty rows high, in the middle."""
    drawn = BLACK.copy()
    drawn[4:24, 12:16] = 255
    return drawn


def corrupted(name: str, digit: Digit, seed: int = 1) -> npt.NDArray[np.int64]:
    return CORRUPTIONS[name](digit, np.random.default_rng(seed)).astype(np.int64)


def centre(ink: npt.NDArray[np.int64]) -> float:
    return float(ink @ np.arange(len(ink)) / ink.sum())


def test_there_are_the_papers_fifteen() -> None:
    assert len(CORRUPTIONS) == 15


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("digit", [bar(), BLACK, np.full((28, 28), 255, np.uint8)], ids=["bar", "black", "white"])
def test_a_corruption_makes_another_image_of_the_same_form_and_spares_its_input(name: str, digit: Digit) -> None:
    before = digit.copy()
    after = CORRUPTIONS[name](digit, np.random.default_rng(1))
    assert after.shape == (28, 28)
    assert after.dtype == np.uint8
    assert not np.shares_memory(after, digit)
    assert (digit == before).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_the_digit_but_never_hides_it(name: str) -> None:
    after = corrupted(name, bar())
    assert (after != bar()).any()
    assert np.ptp(after) > 50


@pytest.mark.parametrize("name", BY_CHANCE)
def test_chance_is_the_generators(name: str) -> None:
    first = corrupted(name, bar())
    assert (corrupted(name, bar()) == first).all()
    assert any((corrupted(name, bar(), seed) != first).any() for seed in range(2, 9))


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - set(BY_CHANCE)))
def test_what_has_no_chance_in_it_is_always_the_same(name: str) -> None:
    assert (corrupted(name, bar(), 1) == corrupted(name, bar(), 2)).all()


def test_shot_noise_counts_three_quanta_for_white() -> None:
    noisy = corrupted("shot noise", bar())
    assert set(np.unique(noisy)) <= {0, 85, 170, 255}
    assert not noisy[bar() == 0].any()
    many = np.concatenate([corrupted("shot noise", np.full((28, 28), 85, np.uint8), seed) for seed in range(20)])
    assert many.mean() == pytest.approx(255 * (math.exp(-1) * (1 + 1) + 3 * (1 - 2.5 * math.exp(-1))) / 3, rel=0.02)


def test_impulse_noise_replaces_17_per_cent_by_as_much_white_as_black() -> None:
    noisy = np.concatenate([corrupted("impulse noise", np.full((28, 28), 128, np.uint8), seed) for seed in range(20)])
    assert (noisy == 255).mean() == pytest.approx(0.085, abs=0.01)
    assert (noisy == 0).mean() == pytest.approx(0.085, abs=0.01)
    assert (noisy == 128).mean() == pytest.approx(0.83, abs=0.02)


def test_glass_blur_softens_edges_and_keeps_the_ink() -> None:
    blurred = corrupted("glass blur", bar())
    assert blurred.sum() == pytest.approx(bar().sum(), rel=0.03)
    assert np.abs(np.diff(blurred, axis=1)).max() < 200
    assert (blurred.sum(0) > 0).sum() > 4


@pytest.mark.parametrize("seed", range(5))
def test_motion_blur_smears_one_way_within_45_degrees_of_the_horizontal(seed: int) -> None:
    dot = BLACK.copy()
    dot[14, 20] = 255
    smeared = corrupted("motion blur", dot, seed)
    rows, columns = np.nonzero(smeared)
    assert columns.max() == 20
    assert smeared[14, 20] == smeared.max()
    assert 4 < np.ptp(columns) <= 20
    assert np.ptp(rows) <= np.ptp(columns) + 1
    assert smeared.sum() == pytest.approx(255, rel=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_shear_moves_rows_by_their_height_over_the_middle(seed: int) -> None:
    sheared = corrupted("shear", bar(), seed)
    slope = (centre(sheared[20]) - centre(sheared[7])) / 13
    assert abs(slope) == pytest.approx(math.sin(0.4), abs=0.02)
    assert centre(sheared.sum(0)) == pytest.approx(13.5, abs=0.1)


def test_scale_shrinks_to_70_per_cent_about_the_middle() -> None:
    shrunk = corrupted("scale", bar())
    assert shrunk.sum() == pytest.approx(0.49 * bar().sum(), rel=0.05)
    assert (shrunk[:, 13] > 127).sum() == 14
    assert centre(shrunk.sum(0)) == centre(shrunk.sum(1)) == pytest.approx(13.5)


@pytest.mark.parametrize("seed", range(5))
def test_rotate_turns_by_23_degrees_about_the_middle(seed: int) -> None:
    turned = corrupted("rotate", bar(), seed)
    slope = (centre(turned[18]) - centre(turned[9])) / 9
    assert abs(slope) == pytest.approx(math.tan(0.4), abs=0.03)
    assert turned.sum() == pytest.approx(bar().sum(), rel=0.02)


def test_shear_rotate_and_translate_go_either_way() -> None:
    for name in ("shear", "rotate"):
        assert len({centre(corrupted(name, bar(), seed)[20]) > 13.5 for seed in range(20)}) == 2
    moved = {corrupted("translate", bar(), seed).tobytes() for seed in range(40)}
    assert len(moved) == 4


def test_brightness_adds_half_of_the_range() -> None:
    assert set(np.unique(corrupted("brightness", bar()))) == {128, 255}


def test_translate_moves_by_three_pixels_along_both_axes() -> None:
    moved = corrupted("translate", bar())
    assert abs(centre(moved.sum(0)) - 13.5) == abs(centre(moved.sum(1)) - 13.5) == 3
    assert moved.sum() == bar().sum()


def test_what_is_moved_out_of_the_image_does_not_come_back() -> None:
    corner = BLACK.copy()
    corner[0, 0] = corner[27, 27] = corner[0, 27] = corner[27, 0] = 255
    assert (corrupted("translate", corner) > 0).sum() == 1


def test_stripe_inverts_the_outer_quarters() -> None:
    striped = corrupted("stripe", bar())
    assert (striped[:, :7] == 255).all()
    assert (striped[:, 21:] == 255).all()
    assert (striped[:, 7:21] == bar()[:, 7:21]).all()


def test_fog_is_three_times_as_strong_as_the_digit_and_smooth() -> None:
    foggy = np.stack([corrupted("fog", np.full((28, 28), 255, np.uint8), seed) for seed in range(10)])
    assert foggy.min() >= 64  # a quarter is the digit's own
    assert foggy.max() > 150
    assert np.abs(np.diff(foggy, axis=1)).mean() < 5
    lit = corrupted("fog", bar()) - corrupted("fog", np.where(bar() == 255, 0, 255).astype(np.uint8))
    assert np.unique(lit[bar() == 255]) == pytest.approx(64, abs=1)


def test_spatter_throws_dark_mud_over_ink_and_paper() -> None:
    on_black, on_white = corrupted("spatter", BLACK), corrupted("spatter", np.full((28, 28), 255, np.uint8))
    muddy = on_black > 0
    assert 0.02 < muddy.mean() < 0.6
    assert on_black[muddy].min() >= 50
    assert on_black.max() <= 63
    assert (on_white[~muddy] == 255).all()
    assert on_white[muddy].max() < 128


def test_a_dotted_line_is_two_columns_on_and_two_off_from_side_to_side() -> None:
    lined = corrupted("dotted line", BLACK)
    inked = lined.max(0) > 0
    assert inked[2::4].all()
    assert inked[3:27:4].all()
    assert not inked[0::4].any()
    assert not inked[1::4].any()
    rows = [centre(lined[:, column]) for column in (2, 14, 26)]
    assert rows[0] - rows[1] == pytest.approx(rows[1] - rows[2], abs=1)


def test_a_zigzag_turns_six_times_between_column_2_and_column_25() -> None:
    lined = next(
        line for line in (corrupted("zigzag", BLACK, seed) for seed in range(99)) if not line[[0, 1, -2, -1]].any()
    )
    assert not lined[:, :1].any()
    assert not lined[:, 27:].any()
    ridge = lined[:, 2:26].argmax(0)
    slopes = np.diff(ridge)
    turns = np.diff(np.sign(slopes[slopes != 0]))
    assert np.count_nonzero(turns) == 6
    assert np.ptp(ridge) <= 4 + 5


def test_canny_edges_leaves_the_outline_alone() -> None:
    outline = corrupted("canny edges", bar())
    assert set(np.unique(outline)) == {0, 255}
    assert not outline[8:20, 13:15].any()
    assert outline[8:20].any(1).all()
    assert (outline[10] == 255).sum() == 2
