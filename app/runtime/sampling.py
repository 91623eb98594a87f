"""Sampling of tokens: temperature, nucleus (Holtzman et al. 2020, arXiv 1904.09751), reproducible random numbers."""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import numpy.typing as npt


class Uniform:
    """Uniform numbers that depend on seed, prompt and choice alone: no sample depends on what shares its batch.

    The number of a step is a keyed hash of the step, as in counter-based generators (Salmon et al. 2011, Random123).
    """

    def __init__(self, seed: int, prompt: Iterable[int], choice: int) -> None:
        content = f"{seed}/{choice}/{','.join(map(str, prompt))}"
        self._key = blake2b(content.encode(), digest_size=32).digest()

    def at(self, step: int) -> float:
        """Return the number of a step, in [0, 1)."""
        digest = blake2b(step.to_bytes(8), key=self._key, digest_size=8).digest()
        return (int.from_bytes(digest) >> 11) * 2.0**-53


def sample(log_probabilities: npt.NDArray[np.float32], temperature: float, top_p: float, uniform: float) -> int:
    """Return an index into log_probabilities (V,), by the inverse of the cumulative distribution at `uniform`.

    `temperature` divides the log-probabilities; then the smallest set of likeliest tokens that reaches `top_p` is kept,
    ties by index. They need not be normalised.
    """
    values = log_probabilities.astype(np.float64)
    weights = np.exp((values - values.max()) / temperature)
    order = None
    if top_p < 1:
        order = np.argsort(-weights, kind="stable")
        weights = weights[order]
        reached = np.cumsum(weights)
        weights = weights[: 1 + int(np.searchsorted(reached, top_p * reached[-1]))]
    sums = np.cumsum(weights)
    index = min(int(np.searchsorted(sums, uniform * sums[-1], side="right")), len(sums) - 1)
    return index if order is None else int(order[index])
