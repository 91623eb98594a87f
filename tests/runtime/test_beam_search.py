import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from app.runtime.beam_search import Expansion, Hypothesis, beam_search
from app.runtime.recurrent_engine import Floats, likeliest

State = tuple[int, ...]  # of the models here: the tokens read so far
Model = Callable[[State], Floats]
END, WORDS = 0, 5


def random_model(seed: int) -> Model:
    """A distribution over WORDS tokens after every history; sharp, so that greedy is often wrong."""

    def distribution(history: State) -> Floats:
        logits = np.random.default_rng([seed, *history]).normal(scale=2, size=WORDS)
        values: Floats = (logits - np.log(np.exp(logits).sum())).astype(np.float32)
        return values

    return distribution


def logs(*probabilities: float) -> Floats:
    values: Floats = np.log(np.array(probabilities, np.float32))
    return values


def search(
    model: Model,
    *,
    width: int,
    length: int,
    length_penalty: float = 0.0,
    asked: list[Sequence[Hypothesis[State]]] | None = None,
    on_certain: Callable[[State], None] | None = None,
    most: int = WORDS,
) -> list[Hypothesis[State]]:
    """Drive a beam search from an empty history; `asked` gets what each step asks for.

    It gets the `most` most probable tokens after each history.
    """

    def said(history: State) -> Expansion[State]:
        values = model(history)
        if most >= len(values):
            return Expansion(values, history)
        tokens = likeliest(values, most)
        return Expansion(values[tokens], history, tokens.tolist())

    steps = beam_search(
        said(()), width=width, length=length, end=END, length_penalty=length_penalty, on_certain=on_certain
    )
    try:
        hypotheses = next(steps)
        while True:
            if asked is not None:
                asked.append(list(hypotheses))
            histories = [(*hypothesis.state, hypothesis.tokens[-1]) for hypothesis in hypotheses]
            hypotheses = steps.send([said(history) for history in histories])
    except StopIteration as stop:
        found: list[Hypothesis[State]] = stop.value
        return found


def every_sequence(model: Model, length: int, history: State = (), total: float = 0.0) -> Iterator[tuple[float, State]]:
    """All sequences that a search may find, with their log-probabilities."""
    if len(history) == length:
        yield total, history
        return
    for token, value in enumerate(model(history).tolist()):
        if token != END:
            yield from every_sequence(model, length, (*history, token), total + value)
        elif history:
            yield total + value, history


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_beam_wide_enough_finds_what_exhaustive_search_finds(seed: int, length: int) -> None:
    model = random_model(seed)
    expected = sorted(every_sequence(model, length), reverse=True)
    found = search(model, width=len(expected), length=length)
    assert [(hypothesis.log_probability, hypothesis.tokens) for hypothesis in found] == expected


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_1_is_greedy(seed: int) -> None:
    model = random_model(seed)
    first = 1 + int(np.argmax(model(())[1:]))  # no sequence is empty
    history: State = (first,)
    while len(history) < 6 and (token := int(np.argmax(model(history)))) != END:
        history = (*history, token)
    (found,) = search(model, width=1, length=6)
    assert found.tokens == history


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_needs_only_the_likeliest_tokens_and_one_more(seed: int, width: int) -> None:
    model = random_model(seed)
    assert search(model, width=width, length=3, most=width + 1) == search(model, width=width, length=3)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_as_many_as_asked_for_are_found_likeliest_first(width: int) -> None:
    found = search(random_model(0), width=width, length=3)
    values = [hypothesis.log_probability for hypothesis in found]
    assert len(found) == width
    assert values == sorted(values, reverse=True)


def test_a_sequence_ends_early_and_its_end_counts() -> None:
    def model(history: State) -> Floats:
        return logs(0.8, 0.1, 0.1) if history else logs(0.4, 0.5, 0.1)

    found = search(model, width=2, length=3)
    assert [(hypothesis.tokens, hypothesis.finished) for hypothesis in found] == [((1,), True), ((2,), True)]
    assert found[0].log_probability == pytest.approx(math.log(0.5 * 0.8))


def test_no_step_is_requested_once_all_have_finished() -> None:
    asked: list[Sequence[Hypothesis[State]]] = []

    def model(history: State) -> Floats:
        return logs(0.8, 0.1, 0.1)

    search(model, width=2, length=5, asked=asked)
    assert len(asked) == 1


def test_a_single_word_needs_no_step() -> None:
    asked: list[Sequence[Hypothesis[State]]] = []
    search(random_model(0), width=3, length=1, asked=asked)
    assert asked == []


def test_what_is_impossible_is_never_taken() -> None:
    def model(history: State) -> Floats:
        values = np.full(WORDS, -np.inf, np.float32)
        values[[1, 2] if len(history) < 2 else [END]] = math.log(0.5)
        return values

    found = search(model, width=10, length=4)
    assert [hypothesis.tokens for hypothesis in found] == [(1, 1), (1, 2), (2, 1), (2, 2)]


def test_where_nothing_is_possible_nothing_is_found() -> None:
    assert search(lambda history: np.full(WORDS, -np.inf, np.float32), width=3, length=3) == []


def test_equals_are_ordered_by_their_tokens() -> None:
    def model(history: State) -> Floats:
        return np.full(WORDS, -math.log(WORDS), np.float32)

    found = search(model, width=6, length=2)
    tokens = [hypothesis.tokens for hypothesis in found]
    assert tokens == sorted(tokens)


def test_each_step_asks_once_for_each_live_sequence_with_the_state_before_its_last_token() -> None:
    asked: list[Sequence[Hypothesis[State]]] = []
    search(random_model(3), width=4, length=4, asked=asked)
    assert [len(hypotheses) <= 4 for hypotheses in asked] == [True, True, True]
    for step, hypotheses in enumerate(asked, start=1):
        assert len({hypothesis.tokens for hypothesis in hypotheses}) == len(hypotheses)
        for hypothesis in hypotheses:
            assert not hypothesis.finished
            assert len(hypothesis.tokens) == step
            assert hypothesis.state == hypothesis.tokens[:-1]


def rank(hypothesis: Hypothesis[State], length_penalty: float) -> float:
    """Return the rank of a hypothesis: the end counts as a token."""
    return hypothesis.log_probability / math.pow(len(hypothesis.tokens) + hypothesis.finished, length_penalty)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length_penalty", [0.5, 1.0])
def test_a_wide_beam_with_a_length_penalty_finds_the_best_of_all_by_its_rank(seed: int, length_penalty: float) -> None:
    model, length = random_model(seed), 3
    ranked = {
        tokens: value / (len(tokens) + (len(tokens) < length)) ** length_penalty
        for value, tokens in every_sequence(model, length)
    }
    found = search(model, width=len(ranked), length=length, length_penalty=length_penalty)
    assert {hypothesis.tokens: pytest.approx(rank(hypothesis, length_penalty)) for hypothesis in found} == ranked
    values = [rank(hypothesis, length_penalty) for hypothesis in found]
    assert values == sorted(values, reverse=True)


def test_a_length_penalty_favours_the_longer_and_reports_plain_sums() -> None:
    def model(history: State) -> Floats:
        return logs(0.45, 0.55) if history else logs(0.0, 1.0)

    with np.errstate(divide="ignore"):
        plain, penalised = (search(model, width=2, length=3, length_penalty=penalty)[0] for penalty in (0.0, 2.0))
    assert plain.tokens == (1,)
    assert plain.log_probability == pytest.approx(math.log(0.45))
    assert penalised.tokens == (1, 1, 1)
    assert penalised.log_probability == pytest.approx(math.log(0.55 * 0.55))


@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_1_is_greedy_whatever_the_length_penalty(seed: int, length_penalty: float) -> None:
    model = random_model(seed)
    (plain,) = search(model, width=1, length=6)
    assert search(model, width=1, length=6, length_penalty=length_penalty) == [plain]


@pytest.mark.parametrize("width", [1, 2, 3, 6])
@pytest.mark.parametrize("seed", range(10))
def test_what_is_certain_grows_and_the_best_begins_with_it(seed: int, width: int) -> None:
    certain = list[State]()
    asked: list[Sequence[Hypothesis[State]]] = []
    found = search(
        random_model(seed), width=width, length=6, length_penalty=0.7, asked=asked, on_certain=certain.append
    )
    assert len(certain) == len(asked) + 1  # after every step
    for before, after in zip(certain, [*certain[1:], found[0].tokens], strict=True):
        assert after[: len(before)] == before


def test_a_finished_sequence_keeps_later_words_uncertain() -> None:
    """One kept sequence has finished after its first word, so no second word is certain."""

    def model(history: State) -> Floats:
        return logs(0.5, 0.5, 0.0) if history else logs(0.0, 1.0, 0.0)

    certain = list[State]()
    with np.errstate(divide="ignore"):
        search(model, width=2, length=3, on_certain=certain.append)
    assert certain == [(1,), (1,), (1,)]
