"""The statistics of a promotion: pure functions of per-row scores and of the looks that were taken before.

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
from typing import NamedTuple, Protocol

from mpmath import mp

from tasks.config import GUARD


class Incomparable(ValueError):
    """Scores that no comparison can be made of; the message says why, as the end of a sentence."""


class Comparison(NamedTuple):
    """A one-sided paired test that the mean difference is greater than a bound.

    Args:
        gain: mean difference, candidate minus champion; positive is better whatever the metric.
        error: its standard error.
        rows: how many differences.
        groups: how many independent groups they form.
        p_value: chance of such a gain, or a greater one, where the true one is the bound.
    """

    gain: float
    error: float
    rows: int
    groups: int
    p_value: float

    def smallest(self, level: float, bound: float = 0.0) -> float:
        """The gain from which the test succeeds at a level, with this standard error."""
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
    if error <= 1e-9 * abs(gain - bound):  # every group differs by the same: only the sign test has something to say
        p_value = 0.5 ** len(members) if gain > bound else 1.0
        return Comparison(gain, error, rows, len(members), p_value)
    p_value = tail((gain - bound) / error, len(members) - 1)
    return Comparison(gain, error, rows, len(members), p_value)


def tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t distribution."""
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


class Spent(Protocol):
    """A look that was taken before."""

    fresh: float
    """What it took of the error rate."""
    level: float
    """What it was tested at: `fresh` and what the look before passed on."""
    better: bool


def next_level(looks: Sequence[Spent], error_rate: float, comparisons: int) -> tuple[float, float]:
    """What the next look takes of the error rate, and its level; both 0 when the looks are spent.

    Args:
        looks: those of this life of the test rows, oldest first. They may have had another error rate.
    """
    left = error_rate - math.fsum(look.fresh for look in looks)
    fresh = min(error_rate / comparisons, left) if len(looks) < comparisons and left > 1e-12 else 0.0
    return fresh, fresh + looks[-1].level if fresh and looks and looks[-1].better else fresh


class Guard(NamedTuple):
    """What must not fall by more than `fall`: a metric on all rows, or on those whose column has a value."""

    metric: str
    column: str
    value: str
    fall: float

    @classmethod
    def parse(cls, text: str) -> "Guard":
        """Raises ValueError when it is not written as a guard is."""
        if not (found := GUARD.fullmatch(text.strip())):
            raise ValueError(
                f"{text!r} is no guard: write METRIC FALL or METRIC[COLUMN=VALUE] FALL, such as rougeL 0.02"
            )
        return cls(found["metric"], found["column"] or "", found["value"] or "", float(found["fall"]))

    @property
    def name(self) -> str:
        return f"{self.metric} on {self.column}={self.value}" if self.column else self.metric


def broken(name: str, found: Comparison, fall: float, level: float) -> str:
    """Why a guard forbids promotion; empty where it is shown that the metric fell by no more than `fall`."""
    if found.p_value <= level:
        return ""
    if found.gain < -fall:
        return f"guard {name} fell by {-found.gain:.3g}, and {fall:g} is allowed"
    return f"guard {name}: a fall of {fall:g} cannot be ruled out (p = {found.p_value:.2g} on {found.rows:,} rows)"
