"""Is one model better than another? Mean differences with a paired bootstrap interval over groups of rows."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
POWER = 0.8
_AT_ONCE = 500  # resamples, so that memory stays small with many rows


def paired_intervals(
    differences: np.ndarray, groups: Sequence[str | None], confidence: float, seed: int
) -> list[tuple[float, float | None, float | None]]:
    """Of each column the mean over rows, and its percentile bootstrap interval.

    Rows are paired, because both models answered the same ones, and drawn in whole groups, because rows of one group
    resemble each other (Efron & Tibshirani 1993, chapters 8 and 13).

    Args:
        differences: `[rows, columns]`, one model's score minus the other's.
        groups: a name for each row; rows with one name belong together, and a row without one is alone.
    Returns:
        mean, low and high of each column; no interval (None) where there is one group, which says nothing of others.
    """
    sums, counts = in_groups(differences, groups)
    found = differences.mean(axis=0).tolist()
    if len(counts) == 1:
        return [(mean, None, None) for mean in found]
    generator = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, differences.shape[1]))
    for first in range(0, RESAMPLES, _AT_ONCE):
        drawn = generator.integers(0, len(counts), (_AT_ONCE, len(counts)))
        times = np.stack([np.bincount(row, minlength=len(counts)) for row in drawn]).astype(float)
        means[first : first + _AT_ONCE] = (times @ sums) / (times @ counts)[:, None]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return list(zip(found, low.tolist(), high.tolist(), strict=True))


def smallest_gains(differences: np.ndarray, groups: Sequence[str | None], confidence: float) -> list[float | None]:
    """Of each column the gain that an interval at this level would show in four of five test sets of this size.

    From the cluster-robust standard error of the mean (Miller 2024, arXiv 2411.00640); None where there is one group.
    """
    sums, counts = in_groups(differences, groups)
    if len(counts) == 1:
        return [None] * differences.shape[1]
    deviations = sums - counts[:, None] * differences.mean(axis=0)
    error = np.sqrt((deviations**2).sum(axis=0) * len(counts) / (len(counts) - 1)) / len(differences)
    normal = NormalDist()
    return [float(e) * (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(POWER)) for e in error]


def in_groups(differences: np.ndarray, groups: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the rows of each group, `[groups, columns]`, and how many rows each has."""
    names = {name: number for number, name in enumerate(dict.fromkeys(filter(None, groups)))}
    alone = iter(range(len(names), len(names) + len(groups)))
    numbers = np.array([names[name] if name else next(alone) for name in groups])
    counts = np.bincount(numbers)
    sums = np.zeros((len(counts), differences.shape[1]))
    np.add.at(sums, numbers, differences)
    return sums, counts
