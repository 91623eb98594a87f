"""Scores: that CIDEr-D is pycocoevalcap's, what the standard scores are worth on known cases, life without Java."""

import os
import random
import shutil
from pathlib import Path

import pytest
from pycocoevalcap.cider.cider import Cider  # type: ignore[import-untyped]

from app.errors import CorpusError
from training.captions.data import photos, source
from training.captions.scores import CiderD, score
from training.captions.vocabulary import words

DATA = Path(os.environ.get("TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
JAVA = shutil.which("java")
needs_java = pytest.mark.skipif(JAVA is None, reason="java is not on the PATH")
REFERENCES = [
    ["A brown dog runs across the grass .", "The dog is running ."],
    ["Two children play football in a park .", "Kids playing with a ball outside ."],
    ["A man climbs a steep rock .", "A climber on a cliff face ."],
    ["A woman in a red coat waits for a bus .", "Someone is waiting at the bus stop ."],
]


def sentences(draw: random.Random, count: int) -> list[list[str]]:
    return [
        draw.choices("a the dog man runs red on grass with ball".split(), k=draw.randint(1, 14)) for _ in range(count)
    ]


# CIDEr-D


@pytest.mark.parametrize("seed", range(5))
def test_cider_d_is_pycocoevalcaps(seed: int) -> None:
    draw = random.Random(seed)
    references = [sentences(draw, draw.randint(1, 5)) for _ in range(12)]
    captions = sentences(draw, 12)
    captions[3] = references[3][0]
    captions[4] = ["unheard", "of"]
    _, expected = Cider().compute_score(
        {number: [" ".join(caption) for caption in group] for number, group in enumerate(references)},
        {number: [" ".join(caption)] for number, caption in enumerate(captions)},
    )
    cider = CiderD(references)
    found = [cider(number, caption) for number, caption in enumerate(captions)]
    assert found == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)
    assert max(found) > 1


def test_cider_d_of_nothing_is_nothing() -> None:
    assert CiderD([[["a", "dog"]], [["a", "cat"]]])(0, []) == 0


def test_cider_d_takes_ids_for_words() -> None:
    references = [[["a", "dog"], ["the", "dog", "runs"]], [["a", "cat"]]]
    ids = {word: number for number, word in enumerate(["a", "dog", "the", "runs", "cat"])}
    numbered = [[[ids[word] for word in caption] for caption in group] for group in references]
    expected = CiderD(references)(0, ["the", "dog"])
    assert expected > 0
    assert CiderD(numbered)(0, [ids["the"], ids["dog"]]) == expected


@pytest.mark.skipif(not (DATA / "flickr8k").is_dir(), reason="Flickr8k is not here: TEST_DATA names no folder with it")
def test_cider_d_is_pycocoevalcaps_on_flickr8k() -> None:
    """Each validation photograph's first caption against its four others."""
    groups = [[words(c) for c in photo.captions] for photo in photos(source(DATA / "flickr8k")) if photo.split == "val"]
    expected, _ = Cider().compute_score(
        {number: [" ".join(caption) for caption in group[1:]] for number, group in enumerate(groups)},
        {number: [" ".join(group[0])] for number, group in enumerate(groups)},
    )
    cider = CiderD([group[1:] for group in groups])
    found = sum(cider(number, group[0]) for number, group in enumerate(groups)) / len(groups)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found > 0.5


# all scores


FIRST = [group[0] for group in REFERENCES]  # word for word a reference


@needs_java
@pytest.mark.timeout(900)  # METEOR reads its tables for a minute, longer on a busy machine
def test_a_reference_word_for_word_scores_full_marks() -> None:
    scores = score(FIRST, REFERENCES)
    assert scores.tokeniser == "ptb"
    bleu = (scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4)
    assert (*bleu, scores.rouge_l, scores.meteor) == pytest.approx((100,) * 6, abs=0.01)
    assert scores.cider == pytest.approx(score(FIRST, REFERENCES, java=None).cider)


def test_without_java_the_scores_that_need_none_are_given_and_marked() -> None:
    scores = score(FIRST, REFERENCES, java=None)
    assert (scores.meteor, scores.tokeniser) == (None, "own")
    assert (scores.bleu_4, scores.rouge_l) == pytest.approx((100, 100), abs=0.01)


def test_scores_rank_a_right_caption_above_a_part_of_it_above_anothers() -> None:
    right = score(FIRST, REFERENCES, java=None)
    part = score([" ".join(caption.split()[:4]) for caption in FIRST], REFERENCES, java=None)
    wrong = score(FIRST[1:] + FIRST[:1], REFERENCES, java=None)
    for name in ("bleu_1", "bleu_4", "rouge_l", "cider"):
        assert getattr(right, name) > getattr(part, name) > getattr(wrong, name) >= 0


def test_case_and_punctuation_count_for_nothing() -> None:
    plain = score(["a brown dog runs across the grass"] * 4, REFERENCES, java=None)
    assert score(["A brown dog runs,\nacross the grass!"] * 4, REFERENCES, java=None) == plain


@pytest.mark.parametrize("captions", [[], ["a dog"], ["a dog"] * 5])
def test_as_many_captions_as_photographs_are_wanted(captions: list[str]) -> None:
    with pytest.raises(CorpusError, match=f"^scores: expected captions for 4 photographs, found {len(captions)}$"):
        score(captions, REFERENCES)
