"""The published captioner: its claimed metrics, and batch invariance."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app import bundle as bundles
from app.bundle import Bundle
from app.runtime.families.captions import CaptionsPredictor, Describe, Description
from app.runtime.loading import load_predictor
from app.runtime.predictor import answer_all
from tests.e2e.conftest import serving
from training.captions import data as data
from training.captions.annotations import Photo
from training.captions.scores import score
from training.captions.vocabulary import words

STORE = Path(__file__).parents[2] / "models_store"
FLICKR8K = Path(os.environ.get("TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "flickr8k"
REQUEST_IMAGES = 8  # the maximum
BATCH = 50
SOME = 200  # test photographs that are captioned here, too

needs_corpus = pytest.mark.skipif(not FLICKR8K.is_dir(), reason="TEST_DATA names no folder with Flickr8k in flickr8k/")
whole_split = pytest.mark.timeout(900)  # a thousand photographs, on a busy machine


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundles.read(STORE / "captions" / bundles.current(STORE, "captions"))


@pytest.fixture(scope="module")
def published() -> Iterator[httpx.Client]:
    with serving(STORE) as (client, _):
        yield client


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> CaptionsPredictor:
    found = load_predictor(bundle)
    assert isinstance(found, CaptionsPredictor)
    return found


@pytest.fixture(scope="module")
def test_photos() -> list[Photo]:
    return [photo for photo in data.photos(data.source(FLICKR8K)) if photo.split == "test"]


@pytest.fixture(scope="module")
def contents(test_photos: list[Photo]) -> list[bytes]:
    return [content for _, content in data.contents(test_photos)]


@pytest.fixture(scope="module")
def offline(predictor: CaptionsPredictor, contents: list[bytes]) -> list[Description]:
    """Caption some test photographs offline with a beam of 3."""
    return captioned(predictor, contents[:SOME], beam=3)


def captioned(predictor: CaptionsPredictor, contents: list[bytes], beam: int) -> list[Description]:
    answers = list[Description]()
    for start in range(0, len(contents), BATCH):
        batch = contents[start : start + BATCH]
        answers += answer_all(predictor, [predictor.prepare(Describe(content, beam=beam)) for content in batch])
    return answers


def test_the_published_metrics_reach_their_targets(bundle: Bundle) -> None:
    metrics = bundle.manifest.metrics
    assert metrics["test_cider"] >= 50
    assert metrics["test_bleu_4"] >= 19.5
    assert metrics["test_meteor"] >= 19.5
    assert metrics["test_distinct"] >= 300
    assert metrics["torch_difference"] <= 1e-4
    assert sum(entry.bytes for entry in bundle.manifest.files.values()) <= 60e6


@needs_corpus
@whole_split
def test_posted_test_photographs_get_the_captions_and_scores_of_the_evaluation(
    published: httpx.Client,
    bundle: Bundle,
    test_photos: list[Photo],
    contents: list[bytes],
    offline: list[Description],
) -> None:
    posted = list[str]()
    for start in range(0, len(contents), REQUEST_IMAGES):
        files = [("image", content) for content in contents[start : start + REQUEST_IMAGES]]
        answer = published.post("/captions", files=files)
        assert answer.status_code == 200, answer.text
        posted += [result["caption"] for result in answer.json()["results"]]
    same = [caption == answer.text for caption, answer in zip(posted[:SOME], offline, strict=True)]
    assert sum(same) >= 0.99 * len(same)
    found, metrics = score(posted, [photo.captions for photo in test_photos]), bundle.manifest.metrics
    assert found.cider == pytest.approx(metrics["test_cider"], abs=0.3)
    assert found.bleu_4 == pytest.approx(metrics["test_bleu_4"], abs=0.3)
    if found.meteor is not None:  # Java is installed
        assert found.meteor == pytest.approx(metrics["test_meteor"], abs=0.3)
    assert len(set(posted)) == pytest.approx(metrics["test_distinct"], abs=10)


@needs_corpus
@whole_split
def test_a_beam_of_3_ranks_no_worse_than_greedy_search(
    predictor: CaptionsPredictor, bundle: Bundle, contents: list[bytes], offline: list[Description]
) -> None:
    """Compare by the rank score: the log-probability over the length to the power of the length penalty."""
    config = bundle.manifest.config

    def rank(answer: Description) -> float:
        count = len(words(answer.text))
        return answer.log_probability / float((count + (count < config["length"])) ** config["length_penalty"])

    greedy = captioned(predictor, contents[:SOME], beam=1)
    no_worse = [rank(wide) >= rank(narrow) - 1e-6 for wide, narrow in zip(offline, greedy, strict=True)]
    assert sum(no_worse) >= 0.99 * len(no_worse)


@needs_corpus
def test_a_caption_does_not_depend_on_its_batch(predictor: CaptionsPredictor, contents: list[bytes]) -> None:
    some = contents[:20]
    together = captioned(predictor, some, beam=3)
    assert [captioned(predictor, [content], beam=3)[0] for content in some] == together
