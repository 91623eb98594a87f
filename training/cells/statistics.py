"""What a difference is worth beside the spread of the seeds."""

import math
import statistics
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """A figure of several seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.mean(self.values)

    @property
    def median(self) -> float:
        """Their median."""
        return statistics.median(self.values)

    @property
    def deviation(self) -> float:
        """The standard deviation of more such figures, estimated (n - 1); NaN from one alone."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def scaled(self, factor: float) -> "Sample":
        """The same in another unit."""
        return Sample(tuple(factor * value for value in self.values))


def welch(first: Sample, second: Sample) -> float:
    """How likely chance makes the means differ as much or more: Welch's t-test (1947), two-sided.

    NaN if one has a single value, or neither any spread.
    """
    shares = [sample.deviation**2 / len(sample.values) for sample in (first, second)]
    if not sum(shares) > 0:
        return math.nan
    t = abs(first.mean - second.mean) / math.sqrt(sum(shares))
    parts = (share**2 / (len(sample.values) - 1) for share, sample in zip(shares, (first, second), strict=True))
    return _student_tails(t, sum(shares) ** 2 / sum(parts))


def _student_tails(t: float, freedom: float) -> float:
    """P(|T| >= t) of Student's distribution; with T = sqrt(freedom) tan(a) its density goes as cos(a)^(freedom - 1)."""
    angles = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, 20_001)
    tail = float(np.trapezoid(np.maximum(np.cos(angles), 0) ** (freedom - 1), angles))
    return 2 * tail * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
