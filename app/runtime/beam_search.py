"""Beam search as a generator, one step of all hypotheses at a time."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from app.runtime.recurrent_engine import likeliest

State = TypeVar("State")


@dataclass(frozen=True)
class Hypothesis(Generic[State]):
    """A partial sequence: its tokens, their summed log-probability and the model's state before the last token."""

    tokens: tuple[int, ...]
    log_probability: float
    state: State
    finished: bool = False


class Expansion(NamedTuple, Generic[State]):
    """The model's output after a hypothesis: the log-probabilities of the next token, and its state."""

    log_probabilities: npt.NDArray[np.float32]  # (V,), or of `tokens` alone
    state: State
    tokens: Sequence[int] | None = None  # None: all V; else the `width` likeliest and the end, ties by id


Search = Generator[Sequence[Hypothesis[State]], Sequence[Expansion[State]], list[Hypothesis[State]]]


def beam_search(
    start: Expansion[State],
    *,
    width: int,
    length: int,
    end: int,
    length_penalty: float = 0.0,
    on_certain: Callable[[tuple[int, ...]], None] | None = None,
) -> Search[State]:
    """Search for the `width` best sequences of up to `length` tokens, best first; `end` finishes one early.

    A generator, so that the caller computes the steps and batches them with others: it yields the hypotheses to expand
    and is sent one Expansion for each. No sequence is empty. `end` is no token of its sequence, but its log-probability
    counts. Tokens at -inf are never chosen. Ties are ordered by token ids.

    Sequences are ranked by log-probability / n ** length_penalty, where n counts the tokens and the end (Wu et al.
    2016, arXiv 1609.08144, without their constant). `on_certain` is called after every step with the common prefix of
    all kept sequences, finished ones included: the best one will start with it.
    """

    def order(hypothesis: Hypothesis[State]) -> tuple[float, tuple[int, ...]]:
        count = len(hypothesis.tokens) + hypothesis.finished
        return -hypothesis.log_probability / count**length_penalty, hypothesis.tokens

    finished: list[Hypothesis[State]] = []
    live = [Hypothesis[State]((), 0.0, start.state)]
    expansions: Sequence[Expansion[State]] = [start]
    for step in range(length):
        if step:
            expansions = yield live
        grown = [
            grown
            for hypothesis, expansion in zip(live, expansions, strict=True)
            for grown in _grow(hypothesis, expansion, width, end)
        ]
        best = sorted([*finished, *grown], key=order)[:width]
        if on_certain and best:
            on_certain(_common_prefix(best))
        finished = [hypothesis for hypothesis in best if hypothesis.finished]
        live = [hypothesis for hypothesis in best if not hypothesis.finished]
        if not live:
            break
    return sorted([*finished, *live], key=order)


def _grow(
    hypothesis: Hypothesis[State], expansion: Expansion[State], width: int, end: int
) -> Iterator[Hypothesis[State]]:
    """Yield the `width` likeliest continuations, and perhaps the end."""
    for index in likeliest(expansion.log_probabilities, width + 1).tolist():
        token = index if expansion.tokens is None else expansion.tokens[index]
        log_probability = hypothesis.log_probability + float(expansion.log_probabilities[index])
        if log_probability == -math.inf or (token == end and not hypothesis.tokens):
            continue
        tokens = hypothesis.tokens if token == end else (*hypothesis.tokens, token)
        yield Hypothesis(tokens, log_probability, expansion.state, finished=token == end)


def _common_prefix(hypotheses: Sequence[Hypothesis[State]]) -> tuple[int, ...]:
    """Return the common prefix of all: that of the first and the last in lexicographic order."""
    first, last = (choose(hypothesis.tokens for hypothesis in hypotheses) for choose in (min, max))
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return tuple(token for token, _ in equal)
