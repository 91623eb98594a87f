"""The calibrated probability that people would call a caption right."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from app.runtime.beam_search import Hypothesis

FLAT: Final = 2  # levels by which neighbouring pixels of a flat area differ at most
UNSURE: Final = "no caption is likely to be right"


class Signs(NamedTuple):
    """Measurements of a caption and its photograph that a confidence is made of."""

    mean: float  # log-probability a word, in nats, the end counted
    worst: float  # log-probability of the least likely word
    agreement: float  # the words shared with the beam's other captions, 0 to 1
    tag: float  # the best score of the detected objects, 0 if there are none
    flatness: float  # the share of neighbouring pixels that hardly differ
    distance: float  # of the photograph's vector from the training photographs', in their deviations


class Confidence:
    """A logistic regression on signs and their squares, with the confidence below which no caption is given."""

    def __init__(self, calibration: Mapping[str, float]) -> None:
        """Read the manifest's `bias`, `threshold` and, for each sign, `NAME` and `NAME_squared`; raise KeyError."""
        self.threshold = calibration["threshold"]
        self._bias = calibration["bias"]
        self._weights = np.array([calibration[name] for name in (*Signs._fields, *map(squared, Signs._fields))])

    def __call__(self, signs: Signs) -> float:
        """Return the probability."""
        score = self._bias + float(self._weights @ inputs(signs))
        return 1 / (1 + math.exp(-max(min(score, 30.0), -30.0)))

    def is_below(self, confidence: float, threshold: float | None) -> bool:
        """Return whether a confidence is below a threshold, by default the model's."""
        return confidence < (self.threshold if threshold is None else threshold)


def inputs(signs: Signs) -> npt.NDArray[np.float64]:
    """Return the regression's inputs (12,): the signs, and their squares."""
    values = np.clip(np.array(signs), -30.0, 30.0)
    return np.concatenate([values, values**2])


def squared(name: str) -> str:
    """Return the name of the weight of a sign's square."""
    return f"{name}_squared"


def signs_of(
    best: Hypothesis[int],
    others: Sequence[Hypothesis[int]],
    totals: Mapping[tuple[int, ...], float],
    *,
    tag: float,
    flatness: float,
    distance: float,
) -> Signs:
    """Return the signs of a caption; `totals` are the log-probabilities of its prefixes, among others."""
    count, words = len(best.tokens) + best.finished, {*best.tokens}
    prefixes = [totals[best.tokens[:length]] for length in range(1, count)]
    worst = np.diff([0.0, *prefixes, best.log_probability]).min()
    shares = [len(words.intersection(each.tokens)) / len(words.union(each.tokens)) for each in others]
    agreement = sum(shares) / len(shares) if shares else 1.0
    return Signs(best.log_probability / count, float(worst), agreement, tag, flatness, distance)


def flatness(pixels: npt.NDArray[np.uint8]) -> float:
    """Return the share of neighbours in a row of (H, W, 3) pixels that differ by at most FLAT levels."""
    left, right = pixels[:, :-1], pixels[:, 1:]
    flat = np.maximum(left, right) - np.minimum(left, right) <= FLAT
    return float((flat[..., 0] & flat[..., 1] & flat[..., 2]).mean())  # `all` over a short axis is slow
