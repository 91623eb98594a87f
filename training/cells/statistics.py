"""Significance of differences between samples of several seeds."""

import math
import statistics
from dataclasses import dataclass

from scipy import stats

SIGNIFICANT = 0.05  # p of Welch's test below which a difference counts, as in Greff et al. 2015
MISSING = "not measured"


@dataclass(frozen=True)
class Sample:
    """One metric, measured with several seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean."""
        return statistics.mean(self.values)

    @property
    def median(self) -> float:
        """Return the median."""
        return statistics.median(self.values)

    @property
    def deviation(self) -> float:
        """Return the sample standard deviation (n - 1); NaN for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def scaled(self, factor: float) -> "Sample":
        """Return the values in another unit."""
        return Sample(tuple(factor * value for value in self.values))


def welch(first: Sample, second: Sample) -> float:
    """Return the two-sided p-value of Welch's t-test (1947).

    NaN if a sample has a single value, or neither has any spread.
    """
    error, freedom = _error_and_freedom(first, second)
    return math.nan if math.isnan(freedom) else float(2 * stats.t.sf(abs(first.mean - second.mean) / error, freedom))


def least_difference(first: Sample, second: Sample, p: float) -> float:
    """Return the smallest difference of means that is significant at level `p`; NaN where `welch` gives NaN."""
    error, freedom = _error_and_freedom(first, second)
    return math.nan if math.isnan(freedom) else float(stats.t.isf(p / 2, freedom)) * error


def verdict(name: str, sample: Sample | None, reference_name: str, reference: Sample | None) -> str:
    """Return a sentence on the difference of two means and its significance over the seeds."""
    names = f"{name} against {reference_name}"
    if sample is None or reference is None:
        return f"{names}: {MISSING}."
    difference, p = sample.mean - reference.mean, welch(sample, reference)
    if math.isnan(p):
        return f"{names}: {difference:+.2f}; without a spread this is not distinguishable from chance."
    if p < SIGNIFICANT:
        return f"{names}: {difference:+.2f}, significant (Welch's t-test, p = {p:.2g})."
    least = least_difference(sample, reference, SIGNIFICANT)
    return (
        f"{names}: {difference:+.2f}, not significant (Welch's t-test, p = {p:.2g}; from {least:.2f} on it would be)."
    )


def _error_and_freedom(first: Sample, second: Sample) -> tuple[float, float]:
    """Return the standard error of the difference of the means, and Welch's degrees of freedom."""
    variances = [sample.deviation**2 / len(sample.values) for sample in (first, second)]
    if not sum(variances) > 0:
        return math.nan, math.nan
    parts = (v**2 / (len(sample.values) - 1) for v, sample in zip(variances, (first, second), strict=True))
    return math.sqrt(sum(variances)), sum(variances) ** 2 / sum(parts)
