"""Confidence: fitted, calibrated, and doubtful of images unlike photographs."""

import io

import numpy as np
import pytest
from PIL import Image

from app.runtime.beam_search import Hypothesis
from app.runtime.families.confidence import Confidence, Signs, flatness, signs_of
from training.captions.attentive.doubt import fit, measure
from training.captions.attentive.unlike import KINDS, unlike


def photographs(count: int, seed: int) -> tuple[list[Signs], np.ndarray]:
    """Signs of photographs, and which captions are right: the likelier, the more often."""
    draw = np.random.default_rng(seed)
    mean = draw.uniform(-3, 0, count)
    signs = [Signs(each, each - 1, 0.5, 0.5, draw.uniform(0, 0.4), draw.uniform(0.8, 1.2)) for each in mean]
    return signs, (draw.random(count) < 1 / (1 + np.exp(-2 * (mean + 1.5)))).astype(float)


def others(count: int, seed: int) -> list[Signs]:
    draw = np.random.default_rng(seed)
    return [
        Signs(draw.uniform(-3, 0), -3.0, 0.5, 0.0, draw.uniform(0.5, 1), draw.uniform(1.5, 3)) for _ in range(count)
    ]


def test_a_fitted_confidence_is_calibrated_and_doubts_images_unlike_photographs() -> None:
    found = measure(*photographs(4000, 1), others(300, 2), others(300, 4))
    assert found["calibration_error"] < 0.05
    assert found["rejected"] > 0.95
    assert found["answered"] == pytest.approx(0.97, abs=0.015)


def test_a_calibration_without_a_weight_is_rejected() -> None:
    calibration = fit(*photographs(20, 1), others(10, 2))
    del calibration["distance_squared"]
    with pytest.raises(KeyError, match="distance_squared"):
        Confidence(calibration)


def test_signs_are_of_the_best_caption_and_its_rivals() -> None:
    best = Hypothesis((5, 6), -3.0, 0, finished=True)
    others = [Hypothesis((5, 7, 8), -4.0, 0), Hypothesis((5, 6), -5.0, 0)]
    totals = {(5,): -0.5, (5, 6): -2.5, (7,): -9.0}
    found = signs_of(best, others, totals, tag=0.8, flatness=0.1, distance=1.0)
    assert found == Signs(-1.0, -2.0, (1 / 4 + 1) / 2, 0.8, 0.1, 1.0)
    assert signs_of(Hypothesis((5,), -1.0, 0), [], {}, tag=0, flatness=0, distance=0).agreement == 1


def test_flat_areas_are_measured() -> None:
    assert flatness(np.zeros((9, 9, 3), np.uint8)) == 1
    half = np.zeros((8, 9, 3), np.uint8)
    half[:4, ::2] = 200
    assert flatness(half) == 0.5


def test_images_unlike_photographs_are_of_all_kinds_and_differ_by_seed() -> None:
    first, again, other = (list(unlike(2 * len(KINDS), seed)) for seed in (1, 1, 2))
    assert first == again
    assert not {*first} & {*other}
    assert len({*first}) == len(first)
    assert all(min(Image.open(io.BytesIO(each)).size) >= 190 for each in first)
