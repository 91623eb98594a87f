"""Augmentation: a digit stays a digit in its position, and all randomness comes from the given generator."""

from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from tests.drawn_digits import digits
from training.digits.augmentation import degraded, elastic
from training.digits.recipe import framed_batch

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """(100, 28, 28) in 0..1."""
    return digits(100, seed=4).images.float() / 255


@pytest.fixture(scope="module")
def seven(images: Tensor) -> Pixels:
    return (images[0] * 255).byte().numpy()


def middles(images: Tensor) -> Tensor:
    """Centres of mass (B, 2), in pixels."""
    places = torch.arange(28.0)
    mass = images.sum((1, 2))
    return torch.stack([images.sum(2) @ places, images.sum(1) @ places], 1) / mass[:, None]


# elastic


def test_a_rewritten_digit_keeps_its_shape_and_its_range(images: Tensor) -> None:
    found = elastic(images)
    assert found.shape == images.shape
    assert found.min() >= 0
    assert found.max() <= 1 + 1e-6


def test_a_rewritten_digit_keeps_its_place_and_most_of_its_ink(images: Tensor) -> None:
    found = elastic(images)
    assert (middles(found) - middles(images)).abs().max() < 4  # pixels
    ink = found.sum((1, 2)) / images.sum((1, 2))
    assert 0.3 < ink.min() < ink.max() < 2.5
    assert 0.8 < ink.mean() < 1.25


def test_each_digit_of_a_batch_is_rewritten_in_another_way(images: Tensor) -> None:
    found = elastic(images[:1].expand(20, 28, 28))
    assert len({image.numpy().tobytes() for image in found}) == 20


def test_strokes_become_thinner_and_thicker(images: Tensor) -> None:
    ink = elastic(images[:1].expand(50, 28, 28)).sum((1, 2)) / images[0].sum()
    assert ink.min() < 0.8
    assert ink.max() > 1.2


def test_nothing_rewritten_is_nothing() -> None:
    assert not elastic(torch.zeros(5, 28, 28)).any()


def test_rewriting_draws_from_torchs_generator(images: Tensor) -> None:
    before = images.clone()
    torch.manual_seed(5)
    once = elastic(images)
    torch.manual_seed(5)
    assert torch.equal(elastic(images), once)
    assert not torch.equal(elastic(images), once)
    assert torch.equal(images, before)


# degraded


def test_degraded_is_an_image_of_grey_levels_of_any_size(seven: Pixels) -> None:
    found = [degraded(seven, np.random.default_rng(seed)) for seed in range(300)]
    assert {image.dtype for image in found} == {np.dtype(np.uint8)}
    sides = [side for image in found for side in image.shape]
    assert 8 <= min(sides) < 28 < max(sides) <= 200
    assert 0.5 < np.mean([image.shape == (28, 28) for image in found]) < 0.8
    dark = [float(np.median(image)) > 127 for image in found]
    assert 0.15 < np.mean(dark) < 0.6  # ink on paper as well as chalk on a board


def test_degrading_draws_from_the_generator_alone(seven: Pixels) -> None:
    before = seven.copy()
    once = [degraded(seven, np.random.default_rng(seed)) for seed in range(40)]
    torch.manual_seed(2)
    again = [degraded(seven, np.random.default_rng(seed)) for seed in range(40)]
    for one, other in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len({image.tobytes() for image in once}) == 40
    np.testing.assert_array_equal(seven, before)


def test_the_framing_finds_degraded_digits(images: Tensor) -> None:
    rng = np.random.default_rng(3)
    pixels = (images * 255).byte().numpy()
    framed = framed_batch(partial(degraded, image, rng) for image in pixels).numpy()
    assert framed.any((1, 2)).all()
    alike = [np.corrcoef(each.ravel(), image.ravel())[0, 1] for each, image in zip(framed, pixels, strict=True)]
    assert np.median(alike) > 0.7
