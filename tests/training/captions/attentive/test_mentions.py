"""Objects that captions mention, and the tags drawn for sentences."""

import numpy as np
import pytest

from app.images import LABELS, Detection
from app.images.tags import COUNTS, NO_TAG, PADDING, kind, tag_slots
from training.captions.attentive.mentions import mentions, names
from training.captions.attentive.tag_noise import TagNoise, without_tags

BOX = (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man rides a horse", {"person": 1, "horse": 1}),
        ("a hot dog on a dining table", {"hot dog": 1, "dining table": 1}),
        ("two dogs and a cat", {"dog": 2, "cat": 1}),
        ("three dogs", {"dog": 3}),
        ("a man and a woman and a boy and a girl", {"person": 3}),
        ("a crowd", {"person": 3}),
        ("a dog", {"dog": 1}),
        ("red paper", {}),
        ("", {}),
    ],
)
def test_labels_are_found_by_the_words_people_use(caption: str, expected: dict[str, int]) -> None:
    assert {LABELS[label]: count for label, count in mentions(caption.split()).items()} == expected


def test_every_label_mentions_itself_and_has_a_word() -> None:
    for index, label in enumerate(LABELS):
        assert mentions(label.split()) == {index: 1}
        assert names(index)
        assert all(" " not in name for name in names(index))


def test_tags_are_the_labels_in_the_order_of_their_scores_with_their_number() -> None:
    found = [Detection("dog", 0.9, BOX), Detection("person", 0.5, BOX), Detection("dog", 0.4, BOX)]
    expected = [[LABELS.index("dog"), kind(0.9, 2)], [0, kind(0.5, 1)], *[[PADDING, 0]] * 6]
    assert tag_slots(found).tolist() == expected
    assert tag_slots([])[:, 0].tolist() == [NO_TAG, *[PADDING] * 7]
    assert len(tag_slots([Detection(label, 0.9, BOX) for label in LABELS])) == 8


def test_kinds_grow_with_score_and_number() -> None:
    kinds = [kind(score, count) for score in (0.3, 0.5, 0.7, 0.8, 0.9) for count in (1, 2, 3)]
    assert kinds == list(range(5 * COUNTS))
    assert kind(0.3, 7) == kind(0.3, 3)


def test_drawn_tags_have_the_detectors_errors() -> None:
    dogs = [Detection("dog", 0.9, BOX)]
    photographs = [dogs] * 300 + [[]] * 100  # of 400 dogs a quarter is missed
    captions = [("a dog runs",)] * 400 + [("a cat",)] * 200 + [("grass",)] * 200
    cups = [Detection("cup", 0.35, BOX)]
    tags = np.stack([tag_slots(each) for each in (*photographs, *[[]] * 200, *[cups] * 100, *[[]] * 100)])
    noise = TagNoise.of(captions, tags)
    dog, cup = LABELS.index("dog"), LABELS.index("cup")
    assert noise.seen[dog] == pytest.approx(0.75, abs=0.01)
    assert noise.invented[cup] == pytest.approx(1 / 8)
    random = np.random.default_rng(1)
    drawn = [noise.draw({dog: 1}, random) for _ in range(2000)]
    assert np.mean([dog in rows[:, 0] for rows in drawn]) == pytest.approx(0.75, abs=0.03)
    assert np.mean([cup in rows[:, 0] for rows in drawn]) == pytest.approx(1 / 8, abs=0.03)
    both = next(rows for rows in drawn if {dog, cup} <= {*rows[:, 0]})
    assert both[0].tolist() == [dog, kind(0.9, 1)]  # the surest first


def test_a_share_of_photographs_loses_its_tags() -> None:
    tags = np.stack([tag_slots([Detection("dog", 0.9, BOX)])] * 1000)
    shown = without_tags(tags, 0.25, np.random.default_rng(1))
    assert np.mean(shown[:, 0, 0] == NO_TAG) == pytest.approx(0.25, abs=0.05)
    assert (without_tags(tags, 0.0, np.random.default_rng(1)) == tags).all()
