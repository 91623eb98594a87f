"""The published language model: its claimed metrics, invariance and resource use."""

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
from app.runtime.families.language_model import LanguageModelPredictor, Suggest
from app.runtime.predictor import Resources, answer_all
from app.runtime.scores import TextScore
from app.runtime.scoring import Score
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
    with serving(STORE, SEQSERVE_REQUEST_TIMEOUT_S="800") as (client, _):
        yield client


@needs_corpus
@pytest.mark.timeout(900)  # 82,430 tokens, one after the other, on a busy machine
def test_the_posted_test_set_has_the_perplexity_of_the_manifest(published: httpx.Client, bundle: Bundle) -> None:
    body = {"model": "ptb", "text": (CORPUS / "ptb.test.txt").read_text(encoding="utf-8")}
    score = published.post("/perplexity", json=body, timeout=800).json()["corpus"]
    assert (score["tokens"], score["sentences"]) == (82_430, 3_761)
    assert score["perplexity"] == pytest.approx(bundle.manifest.metrics["test_perplexity"], rel=0.005)
    assert score["perplexity"] <= 82.0


def test_chunk_size_and_batch_do_not_change_a_score(bundle: Bundle) -> None:
    text = " ".join(random.Random(1).choices(WORDS.split(), k=400))
    likelihoods = []
    for chunk in (1, 7, 64, 300):
        predictor = LanguageModelPredictor.open(bundle, "int8", Resources(), chunk=chunk)
        alone, batched = predictor.prepare(Score(text)), predictor.prepare(Score(text))
        others = [predictor.prepare(Score(WORDS, "sentence")), predictor.prepare(Suggest(WORDS, words=3))]
        scores = answer_all(predictor, [alone]) + answer_all(predictor, [batched, *others])[:1]
        likelihoods += [score.log_likelihood for score in scores]
    assert likelihoods == pytest.approx([likelihoods[0]] * 8, rel=1e-12)  # up to the order of summation


def test_english_has_the_lowest_open_perplexity(bundle: Bundle) -> None:
    english = [
        "We went to the beach and had a lot of fun.",
        "Katarzyna said she would call me back.",
        "Profits rose 12% in May.",
    ]
    others = [
        "Wir waren gestern am Strand und haben gelacht.",
        "\u6211\u4eec \u53bb \u516c\u56ed",
        "asdf asdf asdf",
        "qxz vbn wqp",
    ]
    predictor = LanguageModelPredictor.open(bundle, "int8", Resources())
    scores = answer_all(predictor, [predictor.prepare(Score(text)) for text in [*english, *others]])
    found = [score.perplexity_open for score in scores]
    assert max(found[: len(english)]) < min(found[len(english) :]) / 10


@pytest.fixture(scope="module")
def texts(bundle: Bundle) -> list[str]:
    """Return 300 texts of 1 to 20 words: from the corpus if available, else random."""
    chance = random.Random(2)
    if CORPUS.is_dir():
        words = (CORPUS / "ptb.test.txt").read_text(encoding="utf-8").split()
    else:
        words = chance.choices(
            [token for token in bundle.text("vocabulary.txt").split("\n") if token != "<eos>"], k=90_000
        )
    starts = [(chance.randrange(len(words) - 20), chance.randint(1, 20)) for _ in range(300)]
    return [" ".join(words[start : start + length]) for start, length in starts]


def answered(predictor: LanguageModelPredictor, payloads: list[Suggest | Score], sizes: list[int]) -> list[Any]:
    """Return the answers, computed in batches that cycle through `sizes`."""
    answers, size = list[Any](), cycle(sizes)
    while len(answers) < len(payloads):
        batch = payloads[len(answers) : len(answers) + next(size)]
        answers += answer_all(predictor, [predictor.prepare(payload) for payload in batch])
    return answers


def test_answers_are_bit_identical_for_any_batch_order_and_cache(bundle: Bundle, texts: list[str]) -> None:
    uncached = LanguageModelPredictor.open(bundle, "int8", Resources())
    cached = LanguageModelPredictor.open(bundle, "int8", Resources(cache_bytes=64 * 2**20))
    payloads: list[Suggest | Score] = [*map(Suggest, texts), *map(Score, texts)]
    alone = [
        answer if isinstance(answer, TextScore) else answer.suggestions for answer in answered(uncached, payloads, [1])
    ]
    prefixes = [Suggest(text[: len(text) // 2].rpartition(" ")[0]) for text in texts]
    answered(cached, list(prefixes), [50])
    cached_tokens = 0
    for predictor, sizes in ((uncached, [2, 3, 5]), (uncached, [64, 17]), (cached, [32, 9, 1]), (cached, [64])):
        order = random.Random(sizes[0]).sample(range(len(payloads)), len(payloads))
        for index, answer in zip(order, answered(predictor, [payloads[n] for n in order], sizes), strict=True):
            if isinstance(answer, TextScore):
                assert answer == alone[index]
            else:
                assert answer.suggestions == alone[index]
                cached_tokens += answer.cached_tokens
    assert cached_tokens > 2_700


def test_suggestions_match_scores_and_probabilities_sum_to_one(bundle: Bundle) -> None:
    predictor = LanguageModelPredictor.open(bundle, "int8", Resources())
    every_word = Score(WORDS, per_token=True, alternatives=len(predictor.tokenizer.strings))
    (scored,) = answer_all(predictor, [predictor.prepare(every_word)])
    for position, word in enumerate(scored.token_scores[:-1]):
        (answer,) = answer_all(predictor, [predictor.prepare(Suggest(WORDS[: word.start], top_k=50))])
        assert answer.context_tokens == position
        expected = [each.log_probability for each in word.alternatives if each.token not in ("<eos>", "<unk>")][:50]
        assert [one.log_probability for one in answer.suggestions] == pytest.approx(expected, abs=1e-5)
        assert sum(np.exp(each.log_probability) for each in word.alternatives) == pytest.approx(1, abs=1e-5)


def test_the_server_is_ready_within_3_cpu_seconds_and_400_mib() -> None:
    with serving(STORE) as (client, process):
        ready = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        client.post("/perplexity", json={"text": WORDS})
        status = Path(f"/proc/{process.pid}/status").read_text()
    processor_seconds = sum(map(int, ready[11:13])) / os.sysconf("SC_CLK_TCK")  # utime and stime
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024  # MiB
    assert processor_seconds <= 3  # CPU time, since wall time depends on other load
    assert resident <= 400
