"""Searching for likely sequences, one step of all beams at a time."""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from app.runtime.recurrent_engine import likeliest

State = TypeVar("State")


@dataclass(frozen=True)
class Hypothesis(Generic[State]):
    """A sequence under construction: its tokens, their summed log-probability, the model's state before the last."""

    tokens: tuple[int, ...]
    log_probability: float
    state: State
    ended: bool = False


class Expansion(NamedTuple, Generic[State]):
    """What the model says after a hypothesis: the log-probabilities of what may come next, and its state."""

    log_probabilities: npt.NDArray[np.float32]  # (V,), or of `tokens` alone
    state: State
    tokens: Sequence[int] | None = None  # None: all V; else the likeliest, `width` and the end, equals by their ids


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
    """The `width` best sequences of up to `length` tokens, best first; `end` may end one early.

    A generator, so that the caller decides how steps are computed and with whom they share a batch: it yields the
    hypotheses to be expanded and is sent one Expansion for each. No sequence is empty; `end` is no token of its
    sequence, but its log-probability counts. Tokens at -inf are never taken. Equals are ordered by token ids.

    The best is the one with the largest log-probability / n ** length_penalty, where n counts its tokens and its end
    (Wu et al. 2016, arXiv 1609.08144, without their constant); at 0 the likeliest. `on_certain` is told after every
    step the tokens that all sequences still kept begin with, the ended ones too: the best will begin with them.
    """
    order = partial(_order, length_penalty=length_penalty)
    ended: list[Hypothesis[State]] = []
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
        best = sorted([*ended, *grown], key=order)[:width]
        if on_certain and best:
            on_certain(_shared(best))
        ended = [hypothesis for hypothesis in best if hypothesis.ended]
        live = [hypothesis for hypothesis in best if not hypothesis.ended]
        if not live:
            break
    return sorted([*ended, *live], key=order)


def _grow(
    hypothesis: Hypothesis[State], expansion: Expansion[State], width: int, end: int
) -> Iterator[Hypothesis[State]]:
    """The likeliest ways to go on, `width` of them and perhaps the end."""
    for place in likeliest(expansion.log_probabilities, width + 1).tolist():
        token = place if expansion.tokens is None else expansion.tokens[place]
        log_probability = hypothesis.log_probability + float(expansion.log_probabilities[place])
        if log_probability == -math.inf or (token == end and not hypothesis.tokens):
            continue
        tokens = hypothesis.tokens if token == end else (*hypothesis.tokens, token)
        yield Hypothesis(tokens, log_probability, expansion.state, ended=token == end)


def _order(hypothesis: Hypothesis[State], length_penalty: float) -> tuple[float, tuple[int, ...]]:
    count = len(hypothesis.tokens) + hypothesis.ended
    return -hypothesis.log_probability / count**length_penalty, hypothesis.tokens


def _shared(hypotheses: Sequence[Hypothesis[State]]) -> tuple[int, ...]:
    """The tokens that all begin with: those that the first and the last in the order of their tokens begin with."""
    first, last = (choose(hypothesis.tokens for hypothesis in hypotheses) for choose in (min, max))
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return tuple(token for token, _ in alike)
