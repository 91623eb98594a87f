import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.bundle import Bundle
from app.models.language_model import LanguageModel
from app.runtime.families.language_model import (
    CHUNK,
    LONG_CONTEXT,
    LanguageModelPredictor,
    Suggest,
    Suggestion,
)
from app.runtime.predictor import Resources, answer_all
from app.runtime.recurrent_engine import Pace, Reading, RecurrentEngine, Segment
from app.runtime.scores import Alternative, TextScore, TokenScore, pooled
from app.runtime.scoring import LONG_LINES, LONG_TEXT, SENTENCES, Mode, Score
from app.runtime.state_cache import StateCache
from app.text.penn_treebank import PennTreebank
from app.text.words import Vocabulary, Word, WordTokenizer

EVERYDAY = "Mr. Zork said the company's profits fell 12%.\nHe said he could, they don't: it's <unk> in New York\n"
EVERYTHING = 1000  # more suggestions than there are words
CUTS = (1, 7, 64, 1000)  # tokens
CACHE = 1 << 20  # bytes


class Watched(RecurrentEngine):
    """An engine that records the segments it reads."""

    def __init__(self, *graphs: Any) -> None:
        super().__init__(*graphs)
        self.asked: list[list[Segment]] = []

    def run(self, segments: Sequence[Segment]) -> list[Reading]:
        self.asked.append(list(segments))
        return super().run(segments)

    @property
    def read(self) -> int:
        """Tokens read so far."""
        return sum(len(segment.tokens) for segments in self.asked for segment in segments)


@pytest.fixture(autouse=True)
def expected_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps as on a machine at the expected pace: a busy one takes fewer examples a step."""
    monkeypatch.setattr(Pace, "observe", lambda *_: None)


@pytest.fixture(scope="module")
def int8(tiny_bundle: Bundle) -> LanguageModelPredictor:
    """A predictor without a cache."""
    return LanguageModelPredictor.open(tiny_bundle, "int8", Resources())


@pytest.fixture(scope="module")
def fp32(tiny_bundle: Bundle) -> LanguageModelPredictor:
    """A predictor without a cache."""
    return LanguageModelPredictor.open(tiny_bundle, "fp32", Resources())


@pytest.fixture
def engine(tiny_bundle: Bundle) -> Watched:
    watched = Watched.open(tiny_bundle, "int8")
    assert isinstance(watched, Watched)
    return watched


@pytest.fixture
def watched(engine: Watched, vocabulary: Vocabulary) -> LanguageModelPredictor:
    """A predictor on `engine`, which has read nothing yet."""
    penn = PennTreebank(vocabulary)
    predictor = LanguageModelPredictor(engine, penn, precision="fp32", cache=StateCache(0))
    engine.asked.clear()
    return predictor


def ask(predictor: LanguageModelPredictor, *payloads: Suggest | Score) -> list[Any]:
    """Return the answers to payloads that share their steps."""
    return answer_all(predictor, [predictor.prepare(payload) for payload in payloads])


def suggest(predictor: LanguageModelPredictor, text: str, **options: Any) -> list[Suggestion]:
    (answer,) = ask(predictor, Suggest(text, **options))
    found: list[Suggestion] = answer.suggestions
    return found


def score(predictor: LanguageModelPredictor, text: str, **options: Any) -> TextScore:
    (answer,) = ask(predictor, Score(text, **options))
    assert isinstance(answer, TextScore)
    return answer


def token_scores(predictor: LanguageModelPredictor, text: str, **options: Any) -> list[TokenScore]:
    found = score(predictor, text, per_token=True, **options).token_scores
    assert found is not None
    return found


def log_probabilities(suggestions: Sequence[Suggestion]) -> dict[str, float]:
    return {suggestion.text: suggestion.log_probability for suggestion in suggestions}


def module_scores(model: LanguageModel, ids: list[int]) -> list[float]:
    """The log-probability of each token but the first, as computed by torch."""
    tokens = torch.tensor(ids)[:, None]
    with torch.no_grad():
        reading = model(tokens[:-1], model.initial_state(1))
        distributions = torch.log_softmax(model.logits(reading.hidden), 2)  # (T, 1, V)
    found: list[float] = distributions.gather(2, tokens[1:, :, None]).flatten().tolist()
    return found


# Scores


@pytest.mark.parametrize("mode", ["document", "sentence"])
@pytest.mark.parametrize("chunk", CUTS)
def test_int8_scores_a_text_the_same_wherever_it_is_cut_alone_or_beside_others(
    tiny_bundle: Bundle, int8: LanguageModelPredictor, document: str, chunk: int, mode: Mode
) -> None:
    payload = Score(document, mode, per_token=True, alternatives=2)
    (expected,) = ask(int8, payload)
    cut = LanguageModelPredictor.open(tiny_bundle, "int8", Resources(), chunk=chunk)
    others = (Score(EVERYDAY), Suggest(EVERYDAY, words=3), Suggest("the"), Score(document[50:]))
    for found in (ask(cut, payload)[0], ask(cut, *others, payload)[-1]):
        assert found.token_scores == expected.token_scores
        assert found.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-12)  # the order of the sum


@pytest.mark.parametrize("mode", ["document", "sentence"])
@pytest.mark.parametrize("chunk", CUTS)
def test_fp32_scores_a_text_the_same_wherever_it_is_cut(
    tiny_bundle: Bundle, fp32: LanguageModelPredictor, document: str, chunk: int, mode: Mode
) -> None:
    expected = score(fp32, document, mode=mode)
    cut = LanguageModelPredictor.open(tiny_bundle, "fp32", Resources(), chunk=chunk)
    assert score(cut, document, mode=mode).log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-6)


@pytest.mark.parametrize("mode", ["document", "sentence"])
def test_fp32_scores_as_the_module_does_from_the_state_after_an_end_of_sentence(
    fp32: LanguageModelPredictor, tiny_model: LanguageModel, vocabulary: Vocabulary, document: str, mode: Mode
) -> None:
    text = "\n".join(document.split("\n")[:8])
    scored = token_scores(fp32, text, mode=mode)
    ids = vocabulary.ids(row.token for row in scored)
    ends = [place for place, token in enumerate(ids, start=1) if token == vocabulary.end]
    if mode == "document":
        ends = ends[-1:]
    for start, end in pairwise([0, *ends]):
        expected = module_scores(tiny_model, [vocabulary.end, *ids[start:end]])
        assert [row.log_probability for row in scored[start:end]] == pytest.approx(expected, abs=1e-4)


def test_int8_scores_close_to_fp32(int8: LanguageModelPredictor, fp32: LanguageModelPredictor, document: str) -> None:
    assert score(int8, document).perplexity == pytest.approx(score(fp32, document).perplexity, rel=5e-3)


def test_in_sentence_mode_each_line_is_scored_as_if_it_stood_alone(int8: LanguageModelPredictor, document: str) -> None:
    alone = [row.log_probability for line in document.split("\n") for row in token_scores(int8, line)]
    together = token_scores(int8, document, mode="sentence")
    assert [row.log_probability for row in together] == alone


def test_in_document_mode_a_line_is_scored_knowing_those_before(int8: LanguageModelPredictor) -> None:
    first, second = "the company said profits rose", "he said the market fell"
    separate = [row.log_probability for line in (first, second) for row in token_scores(int8, line)]
    together = [row.log_probability for row in token_scores(int8, f"{first}\n{second}")]
    assert together[:6] == separate[:6]  # up to the first `<eos>`
    assert all(one != other for one, other in zip(together[6:], separate[6:], strict=True))


@pytest.mark.parametrize("mode", ["document", "sentence"])
def test_the_scores_of_the_tokens_make_up_the_text_s(int8: LanguageModelPredictor, document: str, mode: Mode) -> None:
    total = score(int8, document, mode=mode, per_token=True)
    rows = total.token_scores
    assert rows is not None
    assert total.log_likelihood == pytest.approx(math.fsum(row.log_probability for row in rows))
    unknown = [row.log_probability for row in rows if row.unknown]
    assert total.log_likelihood_unknown == pytest.approx(math.fsum(unknown))
    assert (total.tokens, total.unknown_tokens) == (len(rows), len(unknown))
    assert total.sentences == sum(row.token == "<eos>" for row in rows) == 40
    assert total.characters == len(document)
    assert [row.start for row in rows] == sorted(row.start for row in rows)


def test_token_scores_are_returned_on_request_only(int8: LanguageModelPredictor, document: str) -> None:
    plain, detailed = ask(int8, Score(document), Score(document, per_token=True, alternatives=4))
    assert plain.token_scores is None
    assert plain.log_likelihood == detailed.log_likelihood


def test_tokens_carry_their_offsets_in_the_request_text(int8: LanguageModelPredictor) -> None:
    rows = token_scores(int8, EVERYDAY)
    assert [(row.token, EVERYDAY[row.start : row.end]) for row in rows[:9]] == [
        ("mr.", "Mr."),
        ("zork", "Zork"),
        ("said", "said"),
        ("the", "the"),
        ("company", "company"),
        ("'s", "'s"),
        ("profits", "profits"),
        ("fell", "fell"),
        ("N", "12"),
    ]
    ends = [(row.start, row.end) for row in rows if row.token == "<eos>"]
    breaks = [place for place, character in enumerate(EVERYDAY) if character == "\n"]
    assert ends == [(place, place) for place in breaks]


def test_a_last_line_break_changes_nothing_but_the_characters(int8: LanguageModelPredictor) -> None:
    ended, open_ended = score(int8, "the company\nrose\n"), score(int8, "the company\nrose")
    assert ended.log_likelihood == open_ended.log_likelihood
    assert (ended.tokens, ended.sentences, ended.characters) == (5, 2, 17)
    assert (open_ended.tokens, open_ended.sentences, open_ended.characters) == (5, 2, 16)


def test_words_that_the_model_does_not_know_are_unknown_and_so_is_unk_itself(int8: LanguageModelPredictor) -> None:
    rows = token_scores(int8, "the zork said <unk>")
    assert [row.unknown for row in rows] == [False, True, False, True, False]


def test_the_perplexity_may_leave_out_unknown_words(int8: LanguageModelPredictor) -> None:
    found = score(int8, "the zork said <unk>", per_token=True)
    assert found.token_scores is not None
    known = [row.log_probability for row in found.token_scores if not row.unknown]
    assert len(known) == 3
    assert found.perplexity_excluding_unknown == pytest.approx(math.exp(-sum(known) / 3))
    _, end = token_scores(int8, "zork")
    assert score(int8, "zork").perplexity_excluding_unknown == pytest.approx(math.exp(-end.log_probability))


def test_unknown_words_cost_what_their_letters_cost(int8: LanguageModelPredictor) -> None:
    known, once, twice = (score(int8, text) for text in ("the company", "the zork", "the zork zork"))
    assert known.log_likelihood_spelling == 0
    assert known.perplexity_open == known.perplexity
    assert once.log_likelihood_spelling < math.log(1 / 100)
    assert twice.log_likelihood_spelling == pytest.approx(2 * once.log_likelihood_spelling)
    assert twice.perplexity_open == pytest.approx(twice.perplexity * math.exp(-twice.log_likelihood_spelling / 4))
    assert twice.log_likelihood == pytest.approx(
        sum(row.log_probability for row in token_scores(int8, "the zork zork"))
    )


def test_ranks_and_alternatives_agree_with_the_whole_distribution(
    int8: LanguageModelPredictor, vocabulary: Vocabulary
) -> None:
    everything = token_scores(int8, EVERYDAY, alternatives=EVERYTHING)
    for row, short in zip(everything, token_scores(int8, EVERYDAY, alternatives=3), strict=True):
        words = [other.token for other in row.alternatives]
        values = [other.log_probability for other in row.alternatives]
        assert sorted(words) == sorted(vocabulary.tokens)
        assert values == sorted(values, reverse=True)
        assert math.fsum(map(math.exp, values)) == pytest.approx(1, abs=1e-6)
        likely = Alternative("<unk>" if row.unknown else row.token, row.log_probability)
        assert row.alternatives[row.rank - 1] == likely
        assert short.alternatives == row.alternatives[:3]
        assert short.rank == row.rank


def test_metrics_follow_from_the_sums() -> None:
    found = TextScore(log_likelihood=-20.0, log_likelihood_unknown=-8.0, tokens=8, unknown_tokens=2, characters=40)
    assert found.perplexity == pytest.approx(math.exp(20 / 8))
    assert found.perplexity_excluding_unknown == pytest.approx(math.exp(12 / 6))
    assert found.cross_entropy == pytest.approx(math.log2(found.perplexity))
    assert found.bits_per_character == pytest.approx(20 / 40 / math.log(2))


def test_pooled_scores_are_those_of_all_tokens_and_no_mean(int8: LanguageModelPredictor, document: str) -> None:
    texts = document.split("\n")
    together = score(int8, document, mode="sentence")
    total = pooled(ask(int8, *map(Score, texts)))
    assert total.perplexity == pytest.approx(together.perplexity)
    assert total.perplexity_excluding_unknown == pytest.approx(together.perplexity_excluding_unknown)
    assert (total.tokens, total.sentences, total.unknown_tokens) == (
        together.tokens,
        together.sentences,
        together.unknown_tokens,
    )
    assert total.characters == sum(map(len, texts))


@pytest.mark.parametrize("text", ["", " ", "\n\n", " \t\r\n ", "...", "?!\n--\n", "\u200b"])
def test_a_text_without_a_word_has_a_score_without_tokens(int8: LanguageModelPredictor, text: str) -> None:
    found = score(int8, text, per_token=True)
    assert (found.tokens, found.log_likelihood, found.token_scores) == (0, 0.0, [])
    assert (found.characters, found.bytes, found.words) == (len(text), len(text.encode()), len(text.split()))
    means = (found.perplexity, found.word_perplexity, found.cross_entropy, found.bits_per_byte)
    assert all(map(math.isnan, means[:1] + means[2:]))


def test_a_text_may_begin_with_lines_that_have_no_word(int8: LanguageModelPredictor) -> None:
    assert score(int8, "\n...\nthe company").log_likelihood == score(int8, "the company").log_likelihood


@pytest.mark.parametrize("mode", ["document", "sentence"])
def test_lines_are_scored_as_their_text_is(int8: LanguageModelPredictor, document: str, mode: Mode) -> None:
    kept = document.splitlines(keepends=True)
    offsets = accumulate(map(len, kept), initial=0)
    assert int8.score_lines(zip(kept, offsets, strict=False), mode) == score(int8, document, mode=mode)


@pytest.mark.parametrize(("mode", "ahead"), [("document", CHUNK), ("sentence", 10 * SENTENCES)])
def test_lines_are_scored_as_they_come(
    watched: LanguageModelPredictor, engine: Watched, mode: Mode, ahead: int
) -> None:
    line = "the company said profits rose in new york he"  # 9 tokens and an `<eos>`
    waiting = []

    def endless(count: int) -> Iterator[tuple[str, int]]:
        for number in range(count):
            waiting.append(10 * number - engine.read)  # tokens given and not yet read
            yield f"{line}\n", number * (len(line) + 1)

    assert watched.score_lines(endless(500), mode).tokens == 5000
    assert max(waiting) < ahead


# Suggestions


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_every_word_of_a_text_is_suggested_with_the_probability_that_scoring_gives_it(
    precision: str, document: str, vocabulary: Vocabulary, request: pytest.FixtureRequest
) -> None:
    predictor = request.getfixturevalue(precision)
    text = EVERYDAY + "\n".join(document.split("\n")[:3])
    rows = [row for row in token_scores(predictor, text) if not row.unknown and row.token != "<eos>"]
    answers = ask(predictor, *(Suggest(text[: row.start], top_k=EVERYTHING) for row in rows))
    assert len(rows) > 40
    for row, answer in zip(rows, answers, strict=True):
        found = log_probabilities(answer.suggestions)[predictor.tokenizer.decode([vocabulary.index[row.token]])]
        assert found == pytest.approx(row.log_probability, abs=0 if precision == "int8" else 1e-5)


def test_all_words_but_unk_and_the_end_of_a_sentence_are_suggested(
    int8: LanguageModelPredictor, vocabulary: Vocabulary
) -> None:
    everything = suggest(int8, "the company", top_k=EVERYTHING)
    assert {suggestion.text for suggestion in everything} == {
        int8.tokenizer.decode([place])
        for place, token in enumerate(vocabulary.tokens)
        if token not in ("<eos>", "<unk>")
    }
    (row,) = token_scores(int8, "the company rose", alternatives=EVERYTHING)[2:3]
    never = sum(math.exp(each.log_probability) for each in row.alternatives if each.token in ("<eos>", "<unk>"))
    assert sum(suggestion.probability for suggestion in everything) == pytest.approx(1 - never, abs=1e-6)


@pytest.mark.parametrize("words", [1, 3])
@pytest.mark.parametrize("complete", [False, True])
def test_the_likeliest_come_first_and_no_more_than_top_k(
    int8: LanguageModelPredictor, words: int, complete: bool
) -> None:
    ten = suggest(int8, "the company s", top_k=10, words=words, complete=complete)
    values = [suggestion.log_probability for suggestion in ten]
    assert values == sorted(values, reverse=True)
    assert [suggestion.probability for suggestion in ten] == pytest.approx(np.exp(values))
    assert suggest(int8, "the company s", top_k=3, words=words, complete=complete) == ten[:3]
    assert len({suggestion.text for suggestion in ten}) == len(ten)


def test_runs_of_words_are_those_that_exhaustive_search_finds(
    int8: LanguageModelPredictor, vocabulary: Vocabulary, tiny_bundle: Bundle
) -> None:
    """No more runs of two words, finished or not, exist than a beam of 2000 keeps."""
    before = vocabulary.ids(["<eos>", "the", "company"])
    words = [token for token in range(len(vocabulary)) if token not in (vocabulary.end, vocabulary.unknown)]
    engine = RecurrentEngine.open(tiny_bundle, "int8")
    histories = [path for length in range(3) for path in product(words, repeat=length)]
    everything = np.arange(len(vocabulary))
    segments = [Segment(engine.initial_state(), [*before, *path], candidates=everything) for path in histories]
    values = {path: reading.candidates for path, reading in zip(histories, engine.run(segments), strict=True)}
    total: dict[tuple[int, ...], float] = {(): 0.0}
    found: list[tuple[float, tuple[int, ...]]] = []
    for path, distribution in values.items():
        assert distribution is not None
        if path:
            found.append((total[path] + float(distribution[vocabulary.end]), path))
        longer = [(total[path] + float(distribution[word]), (*path, word)) for word in words]
        total |= {grown: value for value, grown in longer}
        if len(path) == 2:
            found += longer
    found.sort(key=lambda pair: (-pair[0], pair[1]))
    suggestions = suggest(int8, "the company", top_k=2000, words=3)
    assert [(suggestion.log_probability, suggestion.text) for suggestion in suggestions] == [
        (value, int8.tokenizer.decode(path)) for value, path in found[:2000]
    ]
    assert {len(path) for _, path in found[:2000]} == {1, 2, 3}  # some ended early


@pytest.mark.parametrize("text", ["the company ", "the company"])
def test_blocked_words_are_not_suggested(tiny_bundle: Bundle, int8: LanguageModelPredictor, text: str) -> None:
    complete = text.endswith("y")
    words = [suggestion.text for suggestion in suggest(int8, text, top_k=3, complete=complete)]
    blocking = LanguageModelPredictor.open(tiny_bundle, "int8", Resources(blocked={words[0]}))
    assert [found.text for found in suggest(blocking, text, top_k=2, complete=complete)] == words[1:3]


def test_a_run_of_words_holds_neither_unk_nor_the_end_of_a_sentence(int8: LanguageModelPredictor) -> None:
    for suggestion in suggest(int8, "the company", top_k=500, words=3):
        assert "<" not in suggestion.text


PAYLOADS = (
    Suggest("The company said profits", top_k=7),
    Suggest("the company said pr", complete=True),
    Suggest("he said zork", words=4),
    Suggest(""),
    Suggest("the company " * 40, words=2, complete=True),
    Suggest("mr. n", words=3, complete=True),
)


@pytest.mark.parametrize("chunk", CUTS)
def test_a_suggestion_depends_on_its_text_alone_bit_for_bit(
    int8: LanguageModelPredictor, tiny_bundle: Bundle, document: str, chunk: int
) -> None:
    expected = [ask(int8, payload)[0].suggestions for payload in PAYLOADS]
    remembering = LanguageModelPredictor.open(tiny_bundle, "int8", Resources(cache_bytes=CACHE), chunk=chunk)
    ask(remembering, Suggest("the company said"), Suggest("the company " * 20))  # prefixes of some
    for _ in range(2):  # read for the first time, then remembered
        *answers, _ = ask(remembering, *PAYLOADS, Score(document, "sentence"))
        assert [answer.suggestions for answer in answers] == expected


def test_cached_or_not_fp32_suggests_the_same(tiny_bundle: Bundle) -> None:
    remembering = LanguageModelPredictor.open(tiny_bundle, "fp32", Resources(cache_bytes=CACHE))
    for payload in PAYLOADS:
        first, again = ask(remembering, payload)[0], ask(remembering, payload)[0]
        assert again.cached_tokens == again.context_tokens
        assert [suggestion.text for suggestion in again.suggestions] == [s.text for s in first.suggestions]
        for one, other in zip(first.suggestions, again.suggestions, strict=True):
            assert one.probability == pytest.approx(other.probability, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "complete", "cached"),
    [
        ("the company said", False, 3),
        ("the company said profits rose", False, 3),
        ("The company said, ", False, 3),
        ("the company said pr", True, 3),
        ("the company said\n", False, 3),
        ("the company", False, 0),  # on the way to what was answered, but not answered itself
        ("the company rose", False, 0),
        ("company said", False, 0),
        ("", False, 0),
    ],
)
def test_the_state_of_the_longest_context_answered_before_is_cached(
    tiny_bundle: Bundle, text: str, complete: bool, cached: int
) -> None:
    observed = []
    predictor = LanguageModelPredictor.open(
        tiny_bundle, "int8", Resources(cache_bytes=CACHE, observe_cache=lambda hit, read: observed.append((hit, read)))
    )
    (first,) = ask(predictor, Suggest("the company said"))
    (second,) = ask(predictor, Suggest(text, complete=complete))
    assert (first.cached_tokens, second.cached_tokens) == (0, cached)
    assert observed == [(0, 3), (cached, second.context_tokens - cached)]


def test_without_a_cache_no_state_is_kept(int8: LanguageModelPredictor) -> None:
    for _ in range(2):
        (answer,) = ask(int8, Suggest("the company said"))
        assert answer.cached_tokens == 0


def test_the_context_and_its_distinct_unknown_words_are_returned(int8: LanguageModelPredictor) -> None:
    (answer,) = ask(int8, Suggest("Zork said Quux's zork.\nThe Zork <unk>"))
    assert answer.context_tokens == 9  # zork said quux 's zork <eos> the zork <unk>
    assert answer.unknown_words == ["Zork", "Quux", "zork", "<unk>"]


@pytest.mark.parametrize("words", [1, 2])
def test_a_word_being_typed_is_completed_by_words_that_begin_so(int8: LanguageModelPredictor, words: int) -> None:
    found = suggest(int8, "the company said pr", complete=True, words=words, top_k=EVERYTHING)
    assert {suggestion.text.split()[0] for suggestion in found if " " in suggestion.text or words == 1} == {
        "price",
        "prices",
        "profits",
    }
    assert all(suggestion.text.startswith("pr") for suggestion in found)


@pytest.mark.parametrize(("text", "before"), [("the company said pr", "the company said"), ("he said ", "he said ")])
def test_completions_share_the_probability_of_all_words_that_fit(
    int8: LanguageModelPredictor, text: str, before: str
) -> None:
    found = suggest(int8, text, complete=True, top_k=EVERYTHING)
    plain = log_probabilities(suggest(int8, before, top_k=EVERYTHING))
    whole = math.log(sum(math.exp(plain[suggestion.text]) for suggestion in found))
    assert sum(suggestion.probability for suggestion in found) == pytest.approx(1, abs=1e-6)
    for suggestion in found:
        assert suggestion.log_probability == pytest.approx(plain[suggestion.text] - whole, abs=1e-5)


def test_a_completed_word_goes_on_with_what_usually_follows(int8: LanguageModelPredictor) -> None:
    completed = log_probabilities(suggest(int8, "he said tradi", complete=True, words=2, top_k=EVERYTHING))
    following = log_probabilities(suggest(int8, "he said trading", top_k=EVERYTHING))
    assert completed["trading bank"] == pytest.approx(following["bank"], abs=1e-6)


def test_where_no_word_fits_nothing_is_suggested(int8: LanguageModelPredictor) -> None:
    for words in (1, 3):
        (answer,) = ask(int8, Suggest("the company said xq", complete=True, words=words))
        assert answer.suggestions == []
        assert answer.context_tokens == 3


@pytest.mark.parametrize("typed", ["Pr", "PR", "pr", "\u201cpr", "N", "198", "<", "n'", "third-q", "\uff50r"])
def test_the_typed_prefix_is_kept_as_typed(int8: LanguageModelPredictor, typed: str) -> None:
    for suggestion in suggest(int8, f"the company said {typed}", complete=True, words=2):
        assert suggestion.text.startswith(typed)


# Steps


def test_a_text_is_read_a_chunk_a_step_and_others_are_answered_in_between(
    watched: LanguageModelPredictor, engine: Watched
) -> None:
    document, first, second = (
        watched.prepare(payload) for payload in (Score("the " * (3 * CHUNK)), Suggest("the"), Suggest("he"))
    )
    answers = [watched.step(batch) for batch in ([document, first], [document, second], [document], [document])]
    assert [[answer is not None for answer in step] for step in answers] == [
        [False, True],
        [False, True],
        [False],
        [True],
    ]
    assert answers[-1][0].tokens == 3 * CHUNK + 1
    assert max(len(segment.tokens) for segments in engine.asked for segment in segments) == CHUNK


def test_a_long_context_is_read_a_chunk_a_step(watched: LanguageModelPredictor, engine: Watched) -> None:
    ask(watched, Suggest("the " * (2 * CHUNK + 1)))
    assert [[len(segment.tokens) for segment in segments] for segments in engine.asked] == [[CHUNK], [CHUNK], [1]]


@pytest.mark.parametrize(
    ("payloads", "light"),
    [
        ([Suggest("the company ")], True),
        ([Suggest("the comp", complete=True)] * 20, True),
        ([Suggest("the company ")] * 20, True),
        ([Suggest("the company ")] * 22, False),  # each costs two words and what may follow
        ([Suggest("the " * 30)] * 3, False),
        ([Suggest("the " * 600)], False),
        ([Suggest("the company ", words=3)], True),
        ([Score("the company")], False),
        ([Suggest("the company "), Score("the company")], False),
    ],
)
def test_a_step_that_reads_a_few_words_fits_inline(
    watched: LanguageModelPredictor, engine: Watched, payloads: list[Suggest | Score], light: bool
) -> None:
    examples = [watched.prepare(payload) for payload in payloads]
    assert watched.fits_inline(examples) == light
    assert engine.asked == []
    expected = ask(watched, *payloads)
    assert answer_all(watched, examples) == expected  # to have been asked changes nothing


def test_searches_among_the_words_of_long_histories_share_no_step(
    watched: LanguageModelPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runtime.families.language_model.SHARES", 1)
    monkeypatch.setattr("app.runtime.families.language_model.MAX_STEP_COST", limit := 512)
    history = "the company " * (limit // 25)
    histories = (history, history, "the ")
    first, second, short = examples = [
        watched.prepare(Suggest("the", words=2, history=history, adapt=True)) for history in histories
    ]
    watched.step([first])
    watched.step([second])
    watched.step([short])
    assert limit > first.cost == second.cost > limit / 2 > 5 * short.cost
    assert [answer is not None for answer in watched.step(examples)] == [True, False, True]
    assert [answer is not None for answer in watched.step([second])] == [True]


def test_an_expensive_batch_is_recognised_after_a_few_examples(watched: LanguageModelPredictor) -> None:
    examples = [watched.prepare(Suggest("the " * 30)) for _ in range(100)]
    for example in examples[3:]:
        example.segments = None  # type: ignore[assignment,method-assign]  # must not be called
    assert not watched.fits_inline(examples)


def test_a_limited_number_of_sentences_is_read_per_step(watched: LanguageModelPredictor, engine: Watched) -> None:
    score(watched, "the company\n" * (SENTENCES + 1), mode="sentence")
    assert [len(segments) for segments in engine.asked] == [SENTENCES, 1]


@pytest.mark.parametrize("mode", ["document", "sentence"])
@pytest.mark.parametrize(("line", "most"), [(" \n", 10), ("-\n", 2000)])
def test_lines_without_words_delay_no_other_request(
    watched: LanguageModelPredictor, monkeypatch: pytest.MonkeyPatch, line: str, most: int, mode: Mode
) -> None:
    looked_into = list[str]()
    assert isinstance(watched.tokenizer, WordTokenizer)
    tokens = watched.tokenizer.tokens

    def counted(line: str, offset: int = 0) -> Iterator[Word]:
        looked_into.append(line)
        return tokens(line, offset)

    example = watched.prepare(Score(line * 20_000 + "company", mode))
    monkeypatch.setattr(watched.tokenizer, "tokens", counted)
    answer = None
    while answer is None:
        looked_into.clear()
        (answer,) = watched.step([example])
        assert len(looked_into) <= most
    words = len(line.split()) * 20_000 + 1
    assert answer == replace(score(watched, "company"), characters=40_007, bytes=40_007, words=words)


def test_a_finished_example_takes_no_further_step(watched: LanguageModelPredictor, engine: Watched) -> None:
    example = watched.prepare(Suggest("the"))
    (answer,) = watched.step([example])
    assert watched.step([example]) == [answer]
    assert len(engine.asked) == 1


def test_a_step_is_bounded_for_any_batch_and_every_example_is_answered(
    watched: LanguageModelPredictor, engine: Watched
) -> None:
    texts = [Score("the company said profits rose\n" * 400, "sentence") for _ in range(20)]
    widest = [Suggest(f"the bank {place}", top_k=50, words=5) for place in range(20)]
    payloads: list[Suggest | Score] = [*texts, *widest, Suggest("the")]
    found = answer_all(watched, [watched.prepare(payload) for payload in payloads])
    assert len(found) == 41
    assert max(sum(len(s.tokens) + (s.likeliest > 0) for s in segments) for segments in engine.asked) <= 512


def test_a_small_example_fits_beside_a_large_one(watched: LanguageModelPredictor, engine: Watched) -> None:
    texts = [watched.prepare(Score("the company said profits rose shares\n" * 400, "sentence")) for _ in range(30)]
    keystroke = watched.prepare(Suggest("the"))
    assert watched.step([*texts, keystroke])[-1] is not None
    assert list(engine.asked[0][0].tokens) == list(texts[0].segments()[0].tokens)


def test_the_first_of_a_batch_are_served_in_their_order(watched: LanguageModelPredictor, engine: Watched) -> None:
    long = [watched.prepare(Score("the company said profits rose shares " * 400)) for _ in range(40)]
    beam = watched.prepare(Suggest("the", top_k=10, words=3))
    steps = 0
    while beam.answer is None:
        watched.step([long[0], beam, *long[1:]])
        steps += 1
    assert steps == 3


def test_no_examples_are_no_step(int8: LanguageModelPredictor) -> None:
    assert int8.step([]) == []


# Whatever is sent


@settings(deadline=None, max_examples=60)
@given(
    st.text(st.one_of(st.sampled_from(" \n\r\t'.$<>Nn1the"), st.characters())),
    st.booleans(),
    st.sampled_from(["document", "sentence"]),
)
def test_any_text_is_answered_or_rejected_for_its_field(
    int8: LanguageModelPredictor, text: str, complete: bool, mode: Mode
) -> None:
    answer = ask(int8, Suggest(text, words=2, complete=complete))[0]
    assert answer.suggestions or complete
    found = score(int8, text, mode=mode, per_token=True)
    before = [token for token in int8.tokenizer.encode(text) if token]
    assert bool(found.tokens) == bool(before)
    assert math.isfinite(found.perplexity) == bool(before)
    assert found.token_scores is not None
    assert all(0 <= row.start <= row.end <= len(text) for row in found.token_scores)
    assert [row.token for row in found.token_scores[: len(before)]] == [token.text for token in before]


@pytest.mark.parametrize(("ask_for", "characters"), [(Suggest, LONG_CONTEXT), (Score, LONG_TEXT)])
def test_only_a_long_text_is_slow_to_prepare(ask_for: type[Suggest] | type[Score], characters: int) -> None:
    assert not ask_for("a" * characters).slow
    assert ask_for("a" * (characters + 1)).slow


@pytest.mark.parametrize("line_break", ["\n", "\r", "\r\n"])
def test_a_text_of_many_lines_is_slow_to_prepare(line_break: str) -> None:
    assert not Score("a" + line_break * (LONG_LINES // len(line_break))).slow
    assert Score("a" + line_break * (LONG_LINES + 1)).slow
