"""The cache model of a writer's words: its shares, and its part in suggestions."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from app.errors import BundleError
from app.runtime.families.language_model import HISTORY_BYTES, LanguageModelPredictor, Suggest, Suggestions
from app.runtime.predictor import answer_all
from app.runtime.writer_cache import OVERHEAD, Histories, Weights, WriterCache
from app.text.subword import SubwordTokenizer
from app.text.whitespace import Whitespace
from app.text.words import END, UNKNOWN, Vocabulary
from tests.runtime.test_word_search import LETTERED, brute_force, predictor, suggest
from tests.text.subwords import subword_tokenizer

WEIGHTS = Weights()
HISTORY = ["hello zyxwv and New York", "zyxwv don't say hello and New help"]


@pytest.fixture(scope="module")
def tokenizer() -> SubwordTokenizer:
    return subword_tokenizer()


def cache_of(*texts: str, context: str) -> tuple[WriterCache, Whitespace, list[int]]:
    tokenizer = Whitespace(Vocabulary([UNKNOWN, END, "a", "b", "c", "d"]))
    history = np.array([token for text in texts for token in tokenizer.prefix(text, complete=False).ids], np.int64)
    ids = tokenizer.prefix(context, complete=False).ids
    return WriterCache(tokenizer, history, ids, WEIGHTS), tokenizer, ids


def test_the_probabilities_sum_to_one_and_words_after_the_same_context_gain_most() -> None:
    cache, tokenizer, context = cache_of("a b c a b c d d", context="d a b ")
    network = np.log(np.full(6, 1 / 6, np.float32))
    joint = np.exp(cache.after(context).joint((), np.arange(6), network))
    assert joint.sum() == pytest.approx(1, abs=1e-6)
    gained = {tokenizer.strings[token]: joint[token] for token in range(2, 6)}
    assert gained["c"] > 1 / 6  # followed `a b` twice
    assert min(gained["a"], gained["b"], gained["d"]) < 1 / 6
    assert gained["c"] == max(gained.values())


def test_the_shares_are_those_of_the_formula() -> None:
    cache, _, context = cache_of("a b c b d", context="a b ")
    joint = np.exp(cache.after(context).joint((), np.arange(6), np.log(np.full(6, 1 / 6, np.float32))))
    trigram = WEIGHTS.trigram * 1 / (1 + WEIGHTS.trigram_doubt)  # `a b` was followed by c
    bigram = (1 - trigram) * WEIGHTS.bigram * 2 / (2 + WEIGHTS.bigram_doubt)  # b by c and d
    unigram = (1 - trigram - bigram) * WEIGHTS.unigram * 7 / (7 + WEIGHTS.unigram_doubt)
    network = 1 - trigram - bigram - unigram
    assert joint[4] == pytest.approx(network / 6 + trigram + bigram / 2 + unigram / 7, rel=1e-5)
    assert joint[5] == pytest.approx(network / 6 + bigram / 2 + unigram / 7, rel=1e-5)
    assert joint[2] == pytest.approx(network / 6 + unigram * 2 / 7, rel=1e-5)


def test_nothing_written_changes_nothing() -> None:
    cache, _, context = cache_of(context="")
    network = np.log(np.full(6, 1 / 6, np.float32))
    assert cache.after(context).joint((), np.arange(6), network).tolist() == network.tolist()


@pytest.mark.parametrize("text", ["and ", "hello ", "New York is in "])
def test_the_words_are_those_of_brute_force(tokenizer: SubwordTokenizer, text: str) -> None:
    model = predictor(tokenizer, adaptation=WEIGHTS)
    (answer,) = suggest(model, text, top_k=5, history=HISTORY)
    (static,) = suggest(model, text, top_k=5, adapt=False)
    words = {*LETTERED, *(each.text for each in [*answer.suggestions, *static.suggestions])}
    network = brute_force(model, text, sorted(words))
    history = [token for each in HISTORY for token in [*tokenizer.prefix(each, complete=False).ids, tokenizer.end]]
    context = tokenizer.prefix(text, complete=False).ids
    shares = WriterCache(tokenizer, np.array(history), context, WEIGHTS).after(context)
    scores = {word: shares.whole(tuple(tokenizer.ids(f" {word}", inside_line=True)), network[word]) for word in words}
    assert [each.text for each in answer.suggestions] == sorted(scores, key=lambda word: -scores[word])[:5]
    for each in answer.suggestions:
        assert each.log_probability == pytest.approx(scores[each.text], abs=1e-4)


def test_a_name_is_offered_the_second_time(tokenizer: SubwordTokenizer) -> None:
    model = predictor(tokenizer, adaptation=Weights(unigram=0.5, unigram_doubt=1))  # the texts are short

    def offered(text: str, **options: Any) -> bool:
        (answer,) = suggest(model, text, complete=True, top_k=3, **options)
        return "zyxwv" in [each.text for each in answer.suggestions]

    assert not offered("I zyx")
    assert not offered("hello zyxwv and zyx", adapt=False)
    assert not offered("I zyx", history=HISTORY, adapt=False)
    assert offered("hello zyxwv and zyx")
    assert offered("I zyx", history=HISTORY)
    assert offered("I zyx", history=HISTORY[0])


def test_a_model_without_weights_adapts_on_request_alone(tokenizer: SubwordTokenizer) -> None:
    model = predictor(tokenizer)
    static, unchanged, adapted = (
        suggest(model, "and ", top_k=5, **options)[0]
        for options in ({}, {"history": HISTORY}, {"history": HISTORY, "adapt": True})
    )
    assert static.suggestions == unchanged.suggestions != adapted.suggestions


@pytest.mark.parametrize("cache", [0, 1 << 24])
def test_answers_depend_neither_on_the_cache_nor_on_the_batch(tokenizer: SubwordTokenizer, cache: int) -> None:
    text = "I don't zyxwv. The"
    payloads = [
        Suggest(text[:size], complete=complete, words=words, history=history)
        for size in range(len(text) + 1)
        for complete in (False, True)
        for words in (1, 2)
        for history in ([], HISTORY)
    ]

    def answers(model: LanguageModelPredictor, some: list[Suggest]) -> list[Any]:
        found: list[Suggestions] = answer_all(model, [model.prepare(payload) for payload in some])
        return [answer.suggestions for answer in found]

    alone = [answers(predictor(tokenizer, cache=0, adaptation=WEIGHTS), [payload])[0] for payload in payloads]
    model = predictor(tokenizer, cache=cache, chunk=2, adaptation=WEIGHTS)
    assert answers(model, payloads) == alone
    assert [answers(model, [payload])[0] for payload in payloads] == alone
    assert all(values == sorted(values, reverse=True) for values in ([s.log_probability for s in one] for one in alone))


def test_histories_are_encoded_once_and_bounded_in_bytes() -> None:
    encoded = list[str]()

    def encode(text: str) -> list[int]:
        encoded.append(text)
        return [7] * len(text)

    histories = Histories(2 * (OVERHEAD + 12 * 10), encode)
    assert histories.tokens(["a" * 10]).tolist() == [7] * 10
    histories.tokens(["b" * 10])
    histories.tokens(["a" * 10])
    assert encoded == ["a" * 10, "b" * 10]
    histories.tokens(["c" * 10])  # in place of b, the least recently used
    histories.tokens(["a" * 10])
    histories.tokens(["b" * 10])
    assert encoded[2:] == ["c" * 10, "b" * 10]
    histories.tokens(["d" * HISTORY_BYTES])
    assert histories.tokens([]).tolist() == []


def test_weights_are_those_of_the_manifest() -> None:
    assert Weights.of({}, "bundle") is None
    assert Weights.of(asdict(WEIGHTS), "bundle") == WEIGHTS


@pytest.mark.parametrize(
    "changed", [{"unigram": 1.0}, {"bigram": -0.1}, {"trigram_doubt": 1e9}, {"temperature": 1.0}, {"bigram": math.nan}]
)
def test_invalid_weights_are_rejected(changed: dict[str, float]) -> None:
    with pytest.raises(BundleError, match="bundle: calibration: expected bigram, "):
        Weights.of(asdict(WEIGHTS) | changed, "bundle")
