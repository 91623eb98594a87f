"""Completions: sampled text, stops, echo and log-probabilities."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.bundle import Bundle
from app.errors import InvalidField
from app.runtime.families.completions import Complete, Completer, Completion, Part, Writer, read_prompt, text_of
from app.runtime.families.language_model import CHUNK, LanguageModelPredictor, Suggest
from app.runtime.predictor import Partial, Resources, answer_all
from app.runtime.recurrent_engine import Likeliest, Reading, Segment
from app.runtime.scoring import Score
from app.runtime.state_cache import StateCache
from app.text.subword import SPECIALS, SubwordTokenizer

PROMPT = "the company said it"
LONG = "the company said profits rose in new york\n" * 30
SUBWORD = SubwordTokenizer([*(name.encode() for name in SPECIALS), *(bytes([value]) for value in range(256))], [])


@pytest.fixture(scope="module")
def predictor(tiny_bundle: Bundle) -> LanguageModelPredictor:
    return LanguageModelPredictor.open(tiny_bundle, "int8", Resources(cache_bytes=1 << 20))


def complete(predictor: LanguageModelPredictor, prompt: Any = PROMPT, **fields: Any) -> Completion:
    (found,) = answer_all(predictor, [predictor.prepare(Complete(prompt, **fields))])
    assert isinstance(found, Completion)
    return found


def text(completion: Completion, choice: int = 0) -> str:
    return "".join(part.text for part in completion.parts if part.choice == choice)


def reasons(completion: Completion) -> list[str]:
    return [part.finish_reason for part in completion.parts if part.finish_reason]


def test_a_greedy_token_is_the_likeliest_suggestion(predictor: LanguageModelPredictor) -> None:
    (suggestions,) = answer_all(predictor, [predictor.prepare(Suggest(PROMPT, 1))])
    found = complete(predictor, max_tokens=1, temperature=0, logprobs=0)
    (part,) = found.parts
    assert part.text == f" {suggestions.suggestions[0].text}"
    assert part.tokens[0].log_probability == suggestions.suggestions[0].log_probability
    assert (part.finish_reason, found.prompt_tokens, found.completion_tokens) == ("length", 4, 1)


@pytest.mark.parametrize("prompt", [PROMPT, LONG, f"{LONG}zork"])
def test_an_echo_has_the_scores_of_the_text(predictor: LanguageModelPredictor, prompt: str) -> None:
    payload = Score(prompt, per_token=True, alternatives=3)
    (score,) = answer_all(predictor, [predictor.prepare(payload)])
    found = complete(predictor, prompt, max_tokens=0, echo=True, logprobs=3)
    (echo, end) = found.parts
    expected = score.token_scores if prompt.endswith("\n") else score.token_scores[:-1]
    assert (echo.text, end.finish_reason, len(echo.tokens)) == (prompt, "length", len(expected))
    assert [token.log_probability for token in echo.tokens] == [token.log_probability for token in expected]
    assert [token.offset for token in echo.tokens] == [token.start for token in expected]
    assert [token.likeliest for token in echo.tokens] == [
        [(other.token, other.log_probability) for other in token.alternatives] for token in expected
    ]


def test_ids_are_read_as_they_are_and_a_first_end_is_the_beginning(predictor: LanguageModelPredictor) -> None:
    ids = read_prompt(PROMPT, predictor.tokenizer).ids
    options: dict[str, Any] = {"max_tokens": 4, "temperature": 0, "echo": True, "logprobs": 1}
    of_text, of_ids = complete(predictor, **options), complete(predictor, ids, **options)
    started = complete(predictor, [predictor.tokenizer.end, *ids], **options)
    assert of_ids.parts == of_text.parts
    assert [token.log_probability for part in started.parts for token in part.tokens] == [
        None,
        *(token.log_probability for part in of_ids.parts for token in part.tokens),
    ]
    assert started.parts[0].text == f"\n{PROMPT}"
    with pytest.raises(InvalidField, match=r"prompt: expected ids from 0 to \d+, found 1000000 at 1"):
        complete(predictor, [0, 1_000_000])


def test_a_sample_depends_on_seed_prompt_and_choice_alone(predictor: LanguageModelPredictor) -> None:
    payload = Complete(PROMPT, max_tokens=12, seed=7, n=3, ignore_eos=True)
    (alone,) = answer_all(predictor, [predictor.prepare(payload)])
    others = [predictor.prepare(Complete(LONG[: 40 * size], n=2, seed=size)) for size in range(1, 5)]
    beside = answer_all(predictor, [*others, predictor.prepare(payload), predictor.prepare(Suggest("a"))])[4]
    texts = [text(alone, choice) for choice in range(3)]
    assert texts == [text(beside, choice) for choice in range(3)]
    assert len(set(texts)) == 3
    assert text(complete(predictor, max_tokens=12, seed=7, ignore_eos=True)) == texts[0]
    assert text(complete(predictor, max_tokens=12, seed=8, ignore_eos=True)) != texts[0]


def test_unknown_is_never_generated_and_an_end_stops(predictor: LanguageModelPredictor) -> None:
    found = complete(predictor, max_tokens=64, n=16, seed=1, logprobs=40)
    tokens = [token for part in found.parts for token in part.tokens]
    assert len(tokens) == found.completion_tokens
    assert {"<unk>"}.isdisjoint(token.token for token in tokens)
    assert {"<unk>"}.isdisjoint(other for token in tokens for other, _ in token.likeliest or ())
    stopped = [part for part in found.parts if part.finish_reason == "stop"]
    assert stopped
    assert {(part.text, part.tokens[0].token) for part in stopped} == {("", "<eos>")}
    going_on = complete(predictor, max_tokens=64, n=16, seed=1, ignore_eos=True)
    assert reasons(going_on) == ["length"] * 16
    assert any("\n" in text(going_on, choice) for choice in range(16))


def test_a_stop_ends_the_text_before_it_wherever_it_is_cut(predictor: LanguageModelPredictor) -> None:
    whole = text(complete(predictor, max_tokens=8, temperature=0, ignore_eos=True))
    for start in range(len(whole)):
        for end in range(start + 1, min(start + 9, len(whole) + 1)):
            stop = whole[start:end]
            found = complete(predictor, max_tokens=8, temperature=0, ignore_eos=True, stop=("<eos>", stop))
            assert text(found) == whole[: whole.index(stop)]
            assert reasons(found) == ["stop"]


def test_parts_add_up_to_the_answer_as_they_are_made(predictor: LanguageModelPredictor) -> None:
    payload = Complete(PROMPT, max_tokens=6, n=2, seed=3, echo=True, logprobs=1, ignore_eos=True)
    example = predictor.prepare(payload)
    made: list[Part] = []
    steps = 0
    output = None
    while not (isinstance(output, Partial) and output.answer):
        (output,) = predictor.step([example])
        assert isinstance(output, Partial)
        made += output.parts
        steps += 1
    assert (made, steps) == (output.answer.parts, 6)


def test_a_cached_prompt_is_not_read_again(tiny_bundle: Bundle) -> None:
    predictor = LanguageModelPredictor.open(tiny_bundle, "int8", Resources(cache_bytes=1 << 20))
    first, second = (complete(predictor, LONG, max_tokens=1, temperature=0) for _ in "ab")
    assert (first.cached_tokens, second.cached_tokens) == (0, second.prompt_tokens)
    assert (text(first), second.prompt_tokens > CHUNK) == (text(second), True)
    scored = complete(predictor, LONG, max_tokens=1, temperature=0, echo=True, logprobs=0)
    assert (scored.cached_tokens, scored.parts[-1].text) == (0, text(first))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("", "a"), ("the ", "a"), ("the", " a"), ("the\n", "a"), ("...", " a"), ("the...", " a"), ([], "a")],
)
def test_text_reads_on_from_the_prompt(predictor: LanguageModelPredictor, prompt: Any, expected: str) -> None:
    writer = Writer(predictor.tokenizer, read_prompt(prompt, predictor.tokenizer))
    a, clitic = (predictor.tokenizer.strings.index(word) for word in ("a", "'s"))
    offset = writer.write(a)
    assert (writer.text, offset) == (expected, expected.index("a"))
    assert (writer.write(clitic), writer.text) == (len(expected), f"{expected}'s")


@given(st.text())
def test_pieces_of_any_text_are_written_as_the_text(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        return
    ids = SUBWORD.ids(value)
    assert read_prompt(ids, SUBWORD).text == value
    prompt = read_prompt(value, SUBWORD)
    assert (prompt.text, prompt.ids) == (value, ids)
    cut = len(ids) // 2
    started = read_prompt(ids[:cut], SUBWORD)
    if started.text.encode() == value.encode()[: len(started.text.encode())]:
        writer = Writer(SUBWORD, started)
        for token in ids[cut:]:
            writer.write(token)
        assert started.text + writer.text + writer.rest() == value


@given(st.lists(st.sampled_from([b"a", b" ", b"\n", b"\xed\xa0\x80", b"\xf0\x9f", b"\xe2\x82\xac", b"\xef\xbf\xbd"])))
def test_bytes_that_are_no_text_are_replaced_and_what_follows_has_its_offset(contents: list[bytes]) -> None:
    content = b"".join(contents)
    ids = [SUBWORD.pieces.index(bytes([value])) for value in content]
    found = read_prompt(ids, SUBWORD)
    assert (found.text, found.text.encode()) == (text_of(ids, SUBWORD), found.text.encode())
    lines = [line.removeprefix(b" ") for line in content.split(b"\n")]
    assert found.text == b"\n".join(lines).decode(errors="replace")
    assert found.offsets == sorted(found.offsets)
    for token, offset in zip(ids, found.offsets, strict=True):
        if SUBWORD.strings[token] in "a\n":
            assert found.text[offset] == SUBWORD.strings[token]


def test_a_character_is_written_once_its_bytes_are_complete() -> None:
    completer = Completer(SUBWORD, np.zeros(1, np.float32), StateCache(0), 32, [])
    payload = Complete("a", max_tokens=4, temperature=0, logprobs=0)
    parts: list[Part] = []
    steps = completer.steps(payload, read_prompt("a", SUBWORD), parts.append)
    segments: list[Segment] = next(steps)
    ids = SUBWORD.ids("\u00e9\u20ac", inside_line=True)[:4]
    answer = None
    for token in ids:
        assert len(segments) == 1
        reading = Reading(np.zeros(1, np.float32), (), (), Likeliest([token], [-1.0]), None)
        try:
            segments = steps.send([reading])
        except StopIteration as stop:
            answer = stop.value
    assert answer == Completion(parts, 2, 0, 4)
    assert [part.text for part in parts] == ["", "\u00e9", "", "\ufffd"]
    assert replace(answer, parts=[]).completion_tokens == 4
