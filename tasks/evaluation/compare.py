"""Is tuned better than base? Means with a paired bootstrap interval on the difference."""

import numpy as np

RESAMPLES = 10_000


def paired_interval(base: list[float], tuned: list[float], confidence: float, seed: int) -> tuple[float, float, float]:
    """Mean of tuned minus base over rows, and its percentile bootstrap interval.

    Rows are drawn in pairs, because both models answered the same rows (Efron & Tibshirani 1993, chapter 13).
    """
    difference = np.asarray(tuned) - np.asarray(base)
    if len(difference) == 1:
        return float(difference[0]), -1.0, 1.0  # one row says nothing about others: all that a score can differ by
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for first in range(0, RESAMPLES, 500):  # in slices, so that memory stays small with many rows
        drawn = generator.integers(0, len(difference), (min(500, RESAMPLES - first), len(difference)))
        means[first : first + 500] = difference[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(difference.mean()), float(low), float(high)
