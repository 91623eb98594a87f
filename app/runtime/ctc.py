"""Decoding of CTC's outputs (Graves et al. 2006, doi 10.1145/1143844.1143891); the blank is the last class."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Path:
    """The labels of a most probable path, repetitions and blanks removed, and the steps of each."""

    digits: list[int]
    spans: list[tuple[int, int]]  # first and last step, end excluded
    confidences: list[float]  # the largest probability of each


def best_path(logits: Floats) -> Path:
    """Decode logits (T, classes) greedily: the most probable class of each step."""
    probabilities = _softmax(logits)
    best = probabilities.argmax(1)
    starts = np.flatnonzero(np.r_[True, best[1:] != best[:-1]])
    ends = np.r_[starts[1:], len(best)]
    runs = [(int(a), int(b)) for a, b in zip(starts, ends, strict=True) if best[a] != logits.shape[1] - 1]
    return Path([int(best[a]) for a, _ in runs], runs, [float(probabilities[a:b, best[a]].max()) for a, b in runs])


def probability(logits: Floats, labels: list[int]) -> float:
    """Return the probability of the labels: the sum over all paths of logits (T, classes) that reduce to them."""
    logs = np.log(np.maximum(_softmax(logits), 1e-30))
    blank = logits.shape[1] - 1
    states = np.full(2 * len(labels) + 1, blank)
    states[1::2] = labels
    skips = np.zeros(len(states), bool)  # a state may follow the one before the last, unless it repeats it
    skips[3::2] = states[3::2] != states[1:-2:2]
    alpha = np.full(len(states), -np.inf)
    alpha[: min(2, len(states))] = logs[0, states[:2]]
    for row in logs[1:]:
        before = np.r_[-np.inf, alpha[:-1]]
        skipped = np.where(skips, np.r_[-np.inf, -np.inf, alpha[:-2]][: len(alpha)], -np.inf)
        alpha = np.logaddexp(np.logaddexp(alpha, before), skipped) + row[states]
    return float(np.exp(np.logaddexp.reduce(alpha[-2:])))


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares: Floats = powers / powers.sum(1, keepdims=True)
    return shares
