"""Sampled softmax: the cost of each target among one set of negatives that a batch shares."""

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.corpora.documents import PieceIds
from training.corpora.files import release

_READ: Final = 1 << 20  # pieces in memory at once


class NegativeSampler:
    """Draw negatives without replacement, in proportion to count^power, and correct the logits for it.

    A piece is drawn if its exponential clock of rate p rings among the first `negatives`; so it is drawn with
    probability q = 1 - exp(-p t), t such that the q add up to `negatives`. Taking log q off the logits of target and
    negatives alike leaves the full softmax's optimum (Bengio & Senecal 2008; Gao et al. 2021, arXiv 2104.10507).
    """

    def __init__(self, counts: Tensor, negatives: int, power: float = 0.75) -> None:
        """`counts` (V,): how often each piece occurs. ValueError for more negatives than pieces."""
        if not 1 <= negatives <= len(counts):
            raise ValueError(f"negatives: expected 1 to {len(counts)}, found {negatives}")
        self.negatives = negatives
        self.rates = (counts.double() + 1) ** power  # (V,)
        self.rates /= self.rates.sum()
        self.log_q = _inclusion(self.rates, negatives).log().float()  # (V,)

    def draw(self) -> Tensor:
        """The ids of one set, by torch's default generator: (S,)."""
        rings = torch.empty_like(self.rates).exponential_() / self.rates
        return rings.topk(self.negatives, largest=False, sorted=False).indices

    def costs(
        self,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor,
        negatives: Tensor,
        function: Callable[..., Tensor],
    ) -> Tensor:
        """-log p of each target among itself and the negatives: (N, E), (N,), (V, E), (V,), (S,) -> (N,).

        `function`: `sampled_costs`, or that compiled.
        """
        column = torch.full((len(weight),), -1)
        column[negatives] = torch.arange(len(negatives))
        return function(
            hidden,
            weight[targets],
            bias[targets] - self.log_q[targets],
            weight[negatives],
            bias[negatives] - self.log_q[negatives],
            column[targets],
        )


def sampled_costs(
    hidden: Tensor, true_weight: Tensor, true_bias: Tensor, weight: Tensor, bias: Tensor, hits: Tensor
) -> Tensor:
    """Costs from the rows of the targets (N, E), (N,) and of the negatives (S, E), (S,).

    `hits` (N,): the column of the negative that is the target itself, and does not count; -1 for none.
    """
    logits = F.linear(hidden, weight, bias)  # (N, S), in autocast's type
    own = torch.arange(len(weight)) == hits[:, None]  # (N, S)
    others = logits.float().masked_fill(own, -torch.inf).logsumexp(1)
    true = (hidden.float() * true_weight.float()).sum(1) + true_bias
    return torch.logaddexp(others, true) - true


def full_costs(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """-log p of each target by the full softmax: (N, E), (N,), (V, E), (V,) -> (N,)."""
    logits = F.linear(hidden, weight, bias)  # (N, V), in autocast's type
    return logits.float().logsumexp(1) - logits.gather(1, targets[:, None]).squeeze(1).float()


def piece_counts(sources: Iterable[PieceIds], size: int) -> Tensor:
    """Return the number of occurrences of each id in all sources: (size,)."""
    counts = np.zeros(size, np.int64)
    for ids in sources:
        for start in range(0, len(ids), _READ):
            counts += np.bincount(ids[start : start + _READ], minlength=size)
            release(ids)
    return torch.from_numpy(counts)


def _inclusion(rates: Tensor, expected: int) -> Tensor:
    """Probabilities 1 - exp(-rates t) that add up to `expected`: (V,)."""
    if expected == len(rates):
        return torch.ones_like(rates)
    low, high = 0.0, 1.0
    while -(torch.expm1(-rates * high)).sum() < expected:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if -(torch.expm1(-rates * middle)).sum() < expected else (low, middle)
    return -torch.expm1(-rates * high)
