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
    error, freedom = _error_and_freedom(first, second)
    return math.nan if math.isnan(freedom) else _student_tails(abs(first.mean - second.mean) / error, freedom)


def least_difference(first: Sample, second: Sample, p: float) -> float:
    """How far apart means with these spreads must be for `welch` to give less than `p`; NaN where it gives NaN."""
    error, freedom = _error_and_freedom(first, second)
    if math.isnan(freedom):
        return math.nan
    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_tails(middle, freedom) > p else (low, middle)
    return high * error


def _error_and_freedom(first: Sample, second: Sample) -> tuple[float, float]:
    """The standard error of the difference of the means and its degrees of freedom; NaN where `welch` gives NaN."""
    shares = [sample.deviation**2 / len(sample.values) for sample in (first, second)]
    if not sum(shares) > 0:
        return math.nan, math.nan
    parts = (share**2 / (len(sample.values) - 1) for share, sample in zip(shares, (first, second), strict=True))
    return math.sqrt(sum(shares)), sum(shares) ** 2 / sum(parts)


def _student_tails(t: float, freedom: float) -> float:
    """P(|T| >= t) of Student's distribution; with T = sqrt(freedom) tan(a) its density goes as cos(a)^(freedom - 1)."""
    angles = np.linspace(math.atan(t / math.sqrt(freedom)), math.pi / 2, 20_001)
    tail = float(np.trapezoid(np.maximum(np.cos(angles), 0) ** (freedom - 1), angles))
    return 2 * tail * math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
