"""Percentiles, and paired comparisons with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A figure and the interval that holds it with 95 % confidence."""

    value: float
    low: float
    high: float


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The percentile, interpolated linearly; None of nothing."""
    return float(np.percentile(values, percent)) if len(values) else None


def paired_ratio(pairs: Mapping[str, Sequence[tuple[float, float]]], seed: int) -> Estimate | None:
    """How many times as large the second of each pair is: the geometric mean, and its interval.

    Args:
        pairs: Positive (first, second), grouped: repeats of one utterance are not independent,
            so groups are what is resampled.
        seed: Of the resampling.
    """
    logs = {name: [(np.log(a), np.log(b)) for a, b in group] for name, group in pairs.items()}
    estimate = paired_difference(logs, seed)
    if estimate is None:
        return None
    return Estimate(*(float(np.exp(x)) for x in (estimate.value, estimate.low, estimate.high)))


def paired_difference(
    pairs: Mapping[str, Sequence[tuple[float, float]]], seed: int
) -> Estimate | None:
    """The mean of second less first over groups, with its percentile bootstrap interval.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    None where there are fewer than two groups: one has no spread.
    """
    means = np.array([np.mean([b - a for a, b in group]) for group in pairs.values() if group])
    if len(means) < 2:
        return None
    resampled = _resampled_means(means, seed)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(means.mean()), float(low), float(high))


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    drawn = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    means: NDArray[np.float64] = values[drawn].mean(axis=1)
    return means
