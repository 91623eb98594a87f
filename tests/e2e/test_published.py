"""The language model that the repository ships, as its figures claim it."""

import os
import random
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from app import bundle as bundles
from app.bundle import Bundle
from app.runtime.families.language_model import LanguageModelPredictor, Score, Suggest
from app.runtime.scheduler import Resources, answer_all
from app.runtime.scores import TextScore
from tests.e2e.conftest import serving

STORE = Path(__file__).parents[2] / "models_store"
CORPUS = Path(os.environ.get("TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "ptb"
WORDS = (
    "the company said it expects third-quarter profit to fall as much as N N from a year earlier mr. smith did n't say"
)

needs_corpus = pytest.mark.skipif(
    not CORPUS.is_dir(), reason="TEST_DATA names no folder with the Penn Treebank in ptb/"
)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return bundles.read(STORE / "ptb" / bundles.current(STORE, "ptb"))


@pytest.fixture(scope="module")
def published() -> Iterator[httpx.Client]:
    with serving(STORE) as (client, _):
        yield client


@needs_corpus
def test_the_whole_test_set_posted_has_the_perplexity_that_the_manifest_claims(
    published: httpx.Client, bundle: Bundle
) -> None:
    body = {"text": (CORPUS / "ptb.test.txt").read_text(encoding="utf-8")}
    score = published.post("/perplexity", json=body, timeout=110).json()["corpus"]
    assert (score["tokens"], score["sentences"]) == (82_430, 3_761)
    assert score["perplexity"] == pytest.approx(bundle.manifest.metrics["test_perplexity"], rel=0.005)
    assert score["perplexity"] <= 82.0


def test_no_cut_and_no_neighbour_changes_a_text_s_score(bundle: Bundle) -> None:
    text = " ".join(random.Random(1).choices(WORDS.split(), k=1500))
    likelihoods = []
    for chunk in (1, 7, 64, 1000):
        predictor = LanguageModelPredictor.open(bundle, "int8", Resources(), chunk=chunk)
        alone, beside = predictor.prepare(Score(text)), predictor.prepare(Score(text))
        others = [predictor.prepare(Score(WORDS, "sentence")), predictor.prepare(Suggest(WORDS, words=3))]
        scores = answer_all(predictor, [alone]) + answer_all(predictor, [beside, *others])[:1]
        likelihoods += [score.log_likelihood for score in scores]
    assert likelihoods == pytest.approx([likelihoods[0]] * 8, rel=1e-12)  # the order of summation remains


@pytest.fixture(scope="module")
def texts(bundle: Bundle) -> list[str]:
    """A thousand texts of 1 to 20 words: the corpus's where it is there, else random ones."""
    chance = random.Random(2)
    if CORPUS.is_dir():
        words = (CORPUS / "ptb.test.txt").read_text(encoding="utf-8").split()
    else:
        words = chance.choices(
            [token for token in bundle.text("vocabulary.txt").split("\n") if token != "<eos>"], k=90_000
        )
    starts = [(chance.randrange(len(words) - 20), chance.randint(1, 20)) for _ in range(1000)]
    return [" ".join(words[start : start + length]) for start, length in starts]


def answered(predictor: LanguageModelPredictor, payloads: list[Suggest | Score], sizes: list[int]) -> list[Any]:
    """The answers, asked for in batches of these sizes in turn."""
    answers, size = list[Any](), cycle(sizes)
    while len(answers) < len(payloads):
        batch = payloads[len(answers) : len(answers) + next(size)]
        answers += answer_all(predictor, [predictor.prepare(payload) for payload in batch])
    return answers


def test_a_thousand_texts_are_answered_the_same_bit_for_bit_in_any_company_order_and_memory(
    bundle: Bundle, texts: list[str]
) -> None:
    forgetful = LanguageModelPredictor.open(bundle, "int8", Resources())
    mindful = LanguageModelPredictor.open(bundle, "int8", Resources(cache_bytes=64 * 2**20))
    payloads: list[Suggest | Score] = [*map(Suggest, texts), *map(Score, texts)]
    alone = [
        answer if isinstance(answer, TextScore) else answer.suggestions for answer in answered(forgetful, payloads, [1])
    ]
    begun = [Suggest(text[: len(text) // 2].rpartition(" ")[0]) for text in texts]
    answered(mindful, list(begun), [50])
    remembered = 0
    for predictor, sizes in ((forgetful, [2, 3, 5]), (forgetful, [64, 17]), (mindful, [32, 9, 1]), (mindful, [64])):
        order = random.Random(sizes[0]).sample(range(len(payloads)), len(payloads))
        for place, answer in zip(order, answered(predictor, [payloads[n] for n in order], sizes), strict=True):
            if isinstance(answer, TextScore):
                assert answer == alone[place]
            else:
                assert answer.suggestions == alone[place]
                remembered += answer.cached_tokens
    assert remembered > 9_000


def test_the_words_suggested_are_as_likely_as_the_same_words_scored_and_all_words_sum_to_one(bundle: Bundle) -> None:
    predictor = LanguageModelPredictor.open(bundle, "int8", Resources())
    everything = Score(WORDS, per_token=True, alternatives=len(predictor.vocabulary))
    (scored,) = answer_all(predictor, [predictor.prepare(everything)])
    for place, word in enumerate(scored.token_scores[:-1]):
        (answer,) = answer_all(predictor, [predictor.prepare(Suggest(WORDS[: word.start], top_k=50))])
        assert answer.context_tokens == place
        expected = [value for token, value in word.alternatives if token not in ("<eos>", "<unk>")][:50]
        assert [one.log_probability for one in answer.suggestions] == pytest.approx(expected, abs=1e-5)
        assert sum(np.exp(value) for _, value in word.alternatives) == pytest.approx(1, abs=1e-5)


def test_it_is_ready_after_three_seconds_of_work_in_four_hundred_megabytes() -> None:
    with serving(STORE) as (client, process):
        ready = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        client.post("/perplexity", json={"text": WORDS})
        status = Path(f"/proc/{process.pid}/status").read_text()
    processor_seconds = sum(map(int, ready[11:13])) / os.sysconf("SC_CLK_TCK")  # utime and stime
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024  # MiB
    assert processor_seconds <= 3  # not wall time, which is the machine's business
    assert resident <= 400
