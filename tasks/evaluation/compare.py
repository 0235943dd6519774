"""Mean differences between two models, with paired bootstrap intervals over groups of rows."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

RESAMPLES = 10_000
POWER = 0.8
_AT_ONCE = 5_000_000  # groups drawn at a time, to limit memory


def paired_intervals(
    differences: np.ndarray, groups: Sequence[str | None], confidence: float, seed: int
) -> list[tuple[float, float | None, float | None]]:
    """Mean over rows and percentile bootstrap interval of each column (Efron & Tibshirani 1993, chapters 8 and 13).

    Rows are paired, because both models answered the same ones. Whole groups are drawn, because rows of one group are
    correlated.

    Args:
        differences: `[rows, columns]`, one model's score minus the other's.
        groups: name of each row's group; a row without one is a group of its own.
    Returns:
        mean, low and high of each column; low and high are None if there is one group alone.
    """
    sums, counts = in_groups(differences, groups)
    found = differences.mean(axis=0).tolist()
    if len(counts) == 1:
        return [(mean, None, None) for mean in found]
    generator = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, differences.shape[1]))
    step = max(1, min(500, _AT_ONCE // len(counts)))
    for first in range(0, RESAMPLES, step):
        drawn = generator.integers(0, len(counts), (min(step, RESAMPLES - first), len(counts)))
        times = np.stack([np.bincount(row, minlength=len(counts)) for row in drawn]).astype(float)
        means[first : first + step] = (times @ sums) / (times @ counts)[:, None]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return list(zip(found, low.tolist(), high.tolist(), strict=True))


def smallest_gains(differences: np.ndarray, groups: Sequence[str | None], confidence: float) -> list[float | None]:
    """The true gain in each column that an interval at this level shows with probability POWER.

    From the cluster-robust standard error of the mean (Miller 2024, arXiv 2411.00640); None if there is one group.
    """
    sums, counts = in_groups(differences, groups)
    if len(counts) == 1:
        return [None] * differences.shape[1]
    deviations = sums - counts[:, None] * differences.mean(axis=0)
    error = np.sqrt((deviations**2).sum(axis=0) * len(counts) / (len(counts) - 1)) / len(differences)
    normal = NormalDist()
    return [float(e) * (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(POWER)) for e in error]


def in_groups(differences: np.ndarray, groups: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Sum of each group's rows, `[groups, columns]`, and the number of its rows."""
    names = {name: number for number, name in enumerate(dict.fromkeys(filter(None, groups)))}
    alone = iter(range(len(names), len(names) + len(groups)))
    numbers = np.array([names[name] if name else next(alone) for name in groups])
    counts = np.bincount(numbers)
    sums = np.zeros((len(counts), differences.shape[1]))
    np.add.at(sums, numbers, differences)
    return sums, counts
