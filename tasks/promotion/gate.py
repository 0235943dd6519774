"""The statistics of a promotion: pure functions of per-row scores and of earlier looks.

p-value: one-sided paired t-test on candidate minus champion. Rows of one group (`data.group_column`) are correlated,
so the standard error is cluster-robust (Miller, Adding Error Bars to Evals, arXiv 2411.00640) and the t distribution
has groups − 1 degrees of freedom. A percentile bootstrap cannot resolve levels such as 0.0005.

Level: online fallback (Tian and Ramdas, arXiv 1910.04900), αᵢ = α·γᵢ + Rᵢ₋₁·αᵢ₋₁ with γᵢ = 1 / comparisons. Each look
has the level error_rate / comparisons, and a look that found its candidate better passes its own level on to the next.
For hypotheses that are fixed beforehand, the chance that any "better" is wrong is then at most `error_rate`, whatever
the dependence between the looks. Here an earlier look decides which champion the next one compares with. This favours
the champion, whose scores on these very rows are better than its true ones; `benchmarks/gate.py` measures the result.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from tasks.config import GUARD
from tasks.promotion.schema import Entry


class Incomparable(ValueError):
    """The scores do not allow a test; the message says why, as the end of a sentence."""


class Comparison(NamedTuple):
    """A one-sided paired test that the mean difference is greater than a bound.

    Args:
        gain: mean difference, candidate minus champion; positive is better for every metric.
        error: standard error of the gain.
        rows, groups: numbers of differences, and of independent groups of them.
        p_value: probability of this gain or a greater one if the true gain is the bound.
    """

    gain: float
    error: float
    rows: int
    groups: int
    p_value: float

    def smallest(self, level: float, bound: float = 0.0) -> float:
        """The smallest gain with which the test succeeds at a level, given this standard error."""
        return bound + self.error * quantile(level, self.groups - 1)


def compare(differences: Sequence[float], groups: Sequence[str | None], bound: float = 0.0) -> Comparison:
    """Test that the mean of the differences is greater than a bound.

    Args:
        differences: one a row; positive where the candidate is better.
        groups: the group of each row; None is a group of its own.
    Raises:
        Incomparable: fewer than two groups, or a difference that is not finite.
    """
    rows = len(differences)
    if not all(map(math.isfinite, differences)):
        raise Incomparable("a score is not a finite number")
    members: dict[object, list[float]] = defaultdict(list)
    for row, (group, difference) in enumerate(zip(groups, differences, strict=True)):
        members[row if group is None else group].append(difference)
    if len(members) < 2:
        raise Incomparable(f"the test needs two groups of test rows or more, and there is {len(members) or 'no'} group")
    gain = math.fsum(differences) / rows
    squares = math.fsum(math.fsum(d - gain for d in group) ** 2 for group in members.values())
    error = math.sqrt(squares * len(members) / (len(members) - 1)) / rows
    if error <= 1e-9 * abs(gain - bound):  # all groups have one difference, so t is not defined: a sign test
        p_value = 0.5 ** len(members) if gain > bound else 1.0
    else:
        p_value = tail((gain - bound) / error, len(members) - 1)
    return Comparison(gain, error, rows, len(members), p_value)


def tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t distribution."""
    from mpmath import mp  # takes a while to import, and the checks before a run read this file for `Guard`

    half = float(mp.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)) / 2
    return half if t > 0 else 1 - half


def quantile(level: float, freedom: int) -> float:
    """The t with P(T > t) = level, for a level below a half."""
    low, high = 0.0, 2.0
    while tail(high, freedom) > level:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, freedom) > level else (low, middle)
    return high


def next_level(looks: Sequence[Entry], error_rate: float, comparisons: int) -> tuple[float, float]:
    """The part of the error rate that the next look uses, and its level; both are 0 when the looks are spent.

    Args:
        looks: of this life of the test rows, oldest first. Their error rate may have been another one.
    """
    left = error_rate - math.fsum(look.fresh for look in looks)
    fresh = min(error_rate / comparisons, left) if len(looks) < comparisons and left > 1e-12 else 0.0
    return fresh, fresh + looks[-1].level if fresh and looks and looks[-1].better else fresh


class Guard(NamedTuple):
    """A metric must not fall by more than `fall` on all rows, or on the rows with a value in a column."""

    metric: str
    column: str
    value: str
    fall: float

    @classmethod
    def parse(cls, text: str) -> "Guard":
        """A guard of the configuration, which has checked how it is written."""
        found = GUARD.fullmatch(text)
        assert found
        return cls(found["metric"], found["column"] or "", found["value"] or "", float(found["fall"]))

    @property
    def name(self) -> str:
        return f"{self.metric} on {self.column}={self.value}" if self.column else self.metric


def broken(name: str, found: Comparison, fall: float, level: float) -> str:
    """Why a guard prevents promotion; empty if the test shows that the metric fell by no more than `fall`."""
    if found.p_value <= level:
        return ""
    if found.gain < -fall:
        return f"guard {name} fell by {-found.gain:.3g}, and {fall:g} is allowed"
    return f"guard {name}: a fall of {fall:g} cannot be ruled out (p = {found.p_value:.2g} on {found.rows:,} rows)"
