"""Tests of where a captioner looks."""

import numpy as np
import pytest

from app.images import Detection
from app.runtime.families.captions import CaptionLook, Description
from training.captions.attentive.looks import found_again, looks


def test_words_for_objects_have_looks() -> None:
    weights = np.arange(81.0).reshape(9, 9).tolist()
    words = [CaptionLook(text, weights, 0.5) for text in ("a", "puppy", "runs")]
    (look,) = looks(Description("a puppy runs", -1.0, [], words=words))
    assert (look.position, look.label, look.weights.shape) == (1, "dog", (9, 9))


@pytest.mark.parametrize(
    ("label", "box", "share"),
    [
        ("dog", (0.1, 0.1, 0.2, 0.2), 1.0),
        ("dog", (0.1, 0.1, 0.2, 0.15), 1.0),
        ("dog", (0.1, 0.1, 0.2, 0.09), 0.0),
        ("cat", (0.1, 0.1, 0.2, 0.2), 0.0),
    ],
)
def test_an_object_is_found_again_by_its_label_and_half_of_its_area(
    label: str, box: tuple[float, float, float, float], share: float
) -> None:
    dog = Detection("dog", 0.9, (0.1, 0.1, 0.2, 0.2))
    assert found_again([([dog], [Detection(label, 0.5, box)]), ([], [])]) == share


def test_an_object_is_found_once() -> None:
    dog = Detection("dog", 0.9, (0.1, 0.1, 0.2, 0.2))
    assert found_again([([dog, dog], [dog])]) == 0.5
