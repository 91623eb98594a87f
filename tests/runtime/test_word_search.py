"""The search for words of several tokens: exact, and the same whatever is cached or shares the batch."""

import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import pytest

from app.runtime.families import language_model
from app.runtime.families.language_model import LanguageModelPredictor, Suggest, Suggestion, Suggestions
from app.runtime.predictor import answer_all
from app.runtime.recurrent_engine import Details, Floats, Likeliest, Reading, Segment, likeliest
from app.runtime.scoring import Score
from app.runtime.state_cache import StateCache
from app.runtime.word_search import Criteria, Word, next_words, request, runs_of_words
from app.text import Prefix
from app.text.subword import SubwordTokenizer
from tests.text.subwords import WORDS, subword_tokenizer

SIZE = 16


class RandomNetwork:
    """A seeded recurrent network in NumPy that prefers words to bytes, behind the engine's interface."""

    def __init__(self, tokenizer: SubwordTokenizer) -> None:
        draw = np.random.default_rng(1)
        count = len(tokenizer.strings)
        self._inputs = draw.normal(size=(count, SIZE))
        self._recurrent = draw.normal(size=(SIZE, SIZE)) / math.sqrt(SIZE)
        self._outputs = draw.normal(size=(count, SIZE))
        self._bias = np.array([min(len(text), 4) for text in tokenizer.strings]) + draw.normal(size=count)
        self.segments: list[list[Segment]] = []

    def initial_state(self) -> Floats:
        return np.zeros(SIZE, np.float32)

    def run(self, segments: Sequence[Segment]) -> list[Reading]:
        self.segments.append(list(segments))
        return [self._read(segment) for segment in segments]

    def log_probabilities(self, state: Floats) -> Floats:
        logits = self._outputs @ state.astype(float) + self._bias
        peak = logits.max()
        found: Floats = (logits - peak - np.log(np.exp(logits - peak).sum())).astype(np.float32)
        return found

    def _read(self, segment: Segment) -> Reading:
        state, scores, details = segment.state, list[float](), list[Details]()
        for token in segment.tokens:
            values = self.log_probabilities(state)
            scores.append(float(values[token]))
            rank = 1 + int((values > values[token]).sum())
            best = likeliest(values, segment.details or 0)
            details.append(Details(rank, Likeliest(best.tolist(), values[best].tolist())))
            state = np.tanh(self._inputs[token] + self._recurrent @ state).astype(np.float32)
        values = self.log_probabilities(state)
        candidates = None if segment.candidates is None else values[segment.candidates]
        if not segment.score:
            return Reading(state, (), (), None, candidates)
        return Reading(state, scores, details if segment.details is not None else (), None, candidates)


@pytest.fixture(scope="module")
def tokenizer() -> SubwordTokenizer:
    return subword_tokenizer()


def predictor(
    tokenizer: SubwordTokenizer, *, cache: int = 1 << 24, network: Any = None, **options: Any
) -> LanguageModelPredictor:
    network = network or RandomNetwork(tokenizer)
    return LanguageModelPredictor(network, tokenizer, precision="fp32", cache=StateCache(cache), **options)


def suggest(model: LanguageModelPredictor, *texts: str, **options: Any) -> list[Suggestions]:
    return answer_all(model, [model.prepare(Suggest(text, **options)) for text in texts])


def brute_force(model: LanguageModelPredictor, text: str, words: Sequence[str]) -> dict[str, float]:
    """The log-probability of each word after `text`: of its pieces and of none of a word's after them."""
    tokenizer, network = model.tokenizer, RandomNetwork(model.tokenizer)  # type: ignore[arg-type]
    assert isinstance(tokenizer, SubwordTokenizer)
    inner = tokenizer.word_pieces.inner.ids
    context = [tokenizer.end, *tokenizer.prefix(text, complete=False).ids]
    found = {}
    for word in words:
        pieces = tokenizer.ids(f" {word}", inside_line=True)
        (reading,) = network.run([Segment(network.initial_state(), [*context, *pieces], score=True, candidates=inner)])
        assert reading.candidates is not None
        end = math.log(1 - np.exp(reading.candidates.astype(float)).sum())
        found[word] = sum(reading.scores[len(context) :]) + end
    return found


LETTERED = [word for word in WORDS if word[0].isalnum()]


@pytest.mark.parametrize("text", ["and ", "I", "New York is in ", "help, hello ", "well "])
def test_the_words_are_those_of_brute_force(tokenizer: SubwordTokenizer, text: str) -> None:
    model = predictor(tokenizer)
    (answer,) = suggest(model, text, top_k=5)
    scores = brute_force(model, text, [*LETTERED, *(s.text for s in answer.suggestions)])
    best = sorted(scores, key=lambda word: -scores[word])[:5]
    assert [suggestion.text for suggestion in answer.suggestions] == best
    for suggestion in answer.suggestions:
        assert suggestion.log_probability == pytest.approx(scores[suggestion.text], abs=1e-4)


@pytest.mark.parametrize("typed", ["th", "he", "y", "is", "do", "2"])
def test_completions_are_those_of_brute_force(tokenizer: SubwordTokenizer, typed: str) -> None:
    model = predictor(tokenizer)
    (answer,) = suggest(model, f"and {typed}", top_k=3, complete=True)
    fitting = {s.text for s in answer.suggestions} | {w for w in LETTERED if w.replace("'", "").startswith(typed)}
    scores = brute_force(model, "and ", sorted(fitting))
    found = [suggestion.text for suggestion in answer.suggestions]
    assert found == sorted(found, key=lambda word: -scores[word])
    if len(found) == 3:
        assert all(scores[word] <= scores[found[-1]] for word in fitting - set(found))
    ratios = [suggestion.log_probability - scores[suggestion.text] for suggestion in answer.suggestions]
    assert ratios == pytest.approx(ratios[:1] * len(ratios), abs=1e-5)  # one normaliser
    assert sum(suggestion.probability for suggestion in answer.suggestions) <= 1


def test_a_word_of_several_pieces_is_found(tokenizer: SubwordTokenizer) -> None:
    model = predictor(tokenizer)
    (answer,) = suggest(model, "I zyx", complete=True, top_k=20)
    assert answer.suggestions
    assert all(suggestion.text.lower().startswith("zyx") for suggestion in answer.suggestions)


@pytest.mark.parametrize("cache", [0, 1 << 14, 1 << 24])
def test_answers_depend_neither_on_the_cache_nor_on_the_batch(tokenizer: SubwordTokenizer, cache: int) -> None:
    text = "I don't. The"
    texts = [text[:size] for size in range(len(text) + 1)]
    options = [{"complete": complete, "words": words} for complete in (False, True) for words in (1, 2)]
    alone = [suggest(predictor(tokenizer, cache=0), each, **option)[0] for option in options for each in texts]
    model = predictor(tokenizer, cache=cache, chunk=2)
    together = [answer for option in options for answer in suggest(model, *texts, **option)]
    again = [suggest(model, each, **option)[0] for option in options for each in texts]
    expected = [answer.suggestions for answer in alone]
    assert [answer.suggestions for answer in together] == expected
    assert [answer.suggestions for answer in again] == expected


def test_a_keystroke_inside_a_word_and_a_word_that_was_suggested_are_read_already(tokenizer: SubwordTokenizer) -> None:
    network = RandomNetwork(tokenizer)
    model = predictor(tokenizer, network=network)
    (answer,) = suggest(model, "I help ", top_k=3)
    network.segments.clear()
    suggest(model, "I help ", top_k=3)
    assert network.segments == []
    suggest(model, f"I help {answer.suggestions[0].text} ", top_k=3)
    assert [len(segment.tokens) for segment in network.segments[0]] == [0]  # its state is known


def test_blocked_words_are_not_suggested(tokenizer: SubwordTokenizer) -> None:
    (answer,) = suggest(predictor(tokenizer), "I help ", top_k=4)
    words = [suggestion.text for suggestion in answer.suggestions]
    blocking = predictor(tokenizer, blocked={words[0].casefold(), words[2].casefold()})
    (found,) = suggest(blocking, "I help ", top_k=2)
    assert [suggestion.text for suggestion in found.suggestions] == [words[1], words[3]]
    (runs,) = suggest(blocking, "I help ", top_k=4, words=2)
    assert all(words[0] not in suggestion.text.split() for suggestion in runs.suggestions)


def test_runs_of_words_are_continued_by_whole_words(tokenizer: SubwordTokenizer) -> None:
    model = predictor(tokenizer)
    (answer,) = suggest(model, "I ", words=3, top_k=5)
    assert len({suggestion.text for suggestion in answer.suggestions}) == 5
    values = [suggestion.log_probability for suggestion in answer.suggestions]
    assert values == sorted(values, reverse=True)
    for suggestion in answer.suggestions:
        assert 1 <= len(suggestion.text.split()) <= 3
        assert suggestion.text.strip() == suggestion.text


def unpruned(
    prefix: Prefix,
    words: Sequence[Word],
    criteria: Criteria,
    length: int,
    end: Sequence[int],
    context: Sequence[int],
    cache: StateCache,
) -> Generator[list[Segment], list[Reading], list[Word]]:
    """Search as `runs_of_words` does, every word after every run, however unlikely."""
    after, best, live = prefix.after(), list[Word](), sorted(words, key=order)[: criteria.width]
    for _ in range(length - 1):
        longer = list[Word]()
        for run in live:
            (reading,) = yield [request(run.state, run.unread, after, criteria)]
            found = yield from next_words(after, reading, criteria, [*context, *run.tokens], cache)
            longer += [run.followed_by(word) for word in found]
            assert reading.candidates is not None
            stops = reading.candidates[after.following(()).stops]
            best.append(run._replace(log_probability=run.open + float(np.log(np.exp(stops.astype(float)).sum()))))
        best = sorted([*best, *longer], key=order)[: criteria.width]
        live = [run for run in best if any(run is each for each in longer)]
        best = [run for run in best if not any(run is each for each in live)]
    return sorted([*best, *live], key=order)


def order(word: Word) -> tuple[float, tuple[int, ...]]:
    return -word.log_probability, word.tokens


@pytest.mark.parametrize("text", ["I ", "and ", "help, hello ", "New York is in ", "The", ""])
@pytest.mark.parametrize(("words", "top_k"), [(2, 5), (3, 5), (5, 4), (3, 20)])
def test_runs_of_words_are_those_of_the_search_without_pruning(
    tokenizer: SubwordTokenizer, monkeypatch: pytest.MonkeyPatch, text: str, words: int, top_k: int
) -> None:
    rows, answers = list[int](), list[list[Suggestion]]()
    for search in (runs_of_words, unpruned):
        monkeypatch.setattr(language_model, "runs_of_words", search)
        network = RandomNetwork(tokenizer)
        (answer,) = suggest(predictor(tokenizer, network=network), text, words=words, top_k=top_k)
        rows.append(sum(map(len, network.segments)))
        answers.append(answer.suggestions)
    assert [each.text for each in answers[0]] == [each.text for each in answers[1]]
    assert [each.log_probability for each in answers[0]] == pytest.approx(
        [each.log_probability for each in answers[1]], abs=1e-6
    )
    assert rows[0] < rows[1]


@pytest.mark.parametrize("mode", ["document", "sentence"])
def test_any_text_is_scored(tokenizer: SubwordTokenizer, mode: str) -> None:
    model = predictor(tokenizer, chunk=3)
    text = "I don't.\n\n\u00e9\U0001f642 help\u200d you\n"
    (score,) = answer_all(model, [model.prepare(Score(text, mode, per_token=True, alternatives=2))])  # type: ignore[arg-type]
    assert math.isfinite(score.perplexity)
    assert (score.unknown_tokens, score.words, score.bytes) == (0, 5, len(text.encode()))
    assert score.log_likelihood == pytest.approx(sum(row.log_probability for row in score.token_scores))
    if mode == "document":
        assert "".join(text[row.start : row.end] for row in score.token_scores) == text
        network = RandomNetwork(tokenizer)
        ids = [tokenizer.end, *tokenizer.ids(text), tokenizer.end]
        (whole,) = network.run([Segment(network.initial_state(), ids, score=True)])
        assert score.log_likelihood == pytest.approx(sum(whole.scores[1:]), rel=1e-6)
