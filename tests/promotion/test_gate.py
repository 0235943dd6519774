"""The gate's statistics: against known values, and with degenerate input."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.config import PromotionConfig
from tasks.promotion.gate import Guard, Incomparable, broken, compare, next_level, quantile, tail


@pytest.mark.parametrize("t", [-7.5, -1.0, 0.0, 0.3, 1.0, 3.3, 12.0, 700.0])
def test_the_tail_is_that_of_closed_forms(t: float) -> None:
    closed = {
        1: 0.5 - math.atan(t) / math.pi,
        2: 0.5 - t / (2 * math.sqrt(2 + t * t)),
        3: 0.5 - (math.atan(t / math.sqrt(3)) + t * math.sqrt(3) / (3 + t * t)) / math.pi,
        4: 0.5 - 0.375 * t / math.sqrt(1 + t * t / 4) * (1 - t * t / (12 * (1 + t * t / 4))),
    }
    for freedom, expected in closed.items():
        assert tail(t, freedom) == pytest.approx(expected, abs=1e-10)


def test_the_tail_is_that_of_published_tables() -> None:
    """Critical values of Student's t as statistics books print them, and the normal distribution in the limit."""
    for freedom, level, t in [(10, 0.05, 1.812), (10, 0.001, 4.144), (30, 0.025, 2.042), (100, 0.001, 3.174)]:
        assert quantile(level, freedom) == pytest.approx(t, abs=6e-4)
    for t in (1.0, 3.3, 5.0):
        normal = math.erfc(t / math.sqrt(2)) / 2
        assert tail(t, 10**7) == pytest.approx(normal, rel=1e-4)
    assert tail(quantile(5e-4, 499), 499) == pytest.approx(5e-4, rel=1e-9)


def test_rows_of_one_group_count_as_they_vary_together() -> None:
    values = [0.1, -0.2, 0.3, 0.05, 0.4, -0.1]
    alone = compare(values, [None] * 6)
    n, mean = 6, sum(values) / 6
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    assert alone.error == pytest.approx(deviation / math.sqrt(n), rel=1e-12)  # the plain paired t-test
    assert alone.p_value == pytest.approx(tail(mean / alone.error, 5), rel=1e-12)
    copied = compare(values * 10, [str(n) for n in range(6)] * 10)
    assert (copied.groups, copied.rows) == (6, 60)
    assert copied.p_value == pytest.approx(alone.p_value, rel=1e-9)  # ten copies of a row are no new evidence
    assert compare(values * 10, [None] * 60).p_value < alone.p_value / 2


def test_the_smallest_gain_is_where_the_test_succeeds() -> None:
    values, level = [0.1, -0.2, 0.3, 0.05, 0.4, -0.1], 0.01
    found = compare(values, [None] * 6, bound=0.02)
    shift = found.smallest(level, 0.02) - found.gain
    assert compare([v + shift + 1e-9 for v in values], [None] * 6, 0.02).p_value <= level
    assert compare([v + shift - 1e-9 for v in values], [None] * 6, 0.02).p_value > level


@pytest.mark.parametrize(
    ("differences", "groups", "p_value"),
    [
        ([0.0] * 50, [None] * 50, 1.0),  # the same answers
        ([0.1] * 50, [None] * 50, 0.5**50),
        ([0.1] * 3, [None] * 3, 0.125),  # three equal gains prove little
        ([-0.1] * 50, [None] * 50, 1.0),
        ([0.1, 0.1, 0.1, 0.1], ["a", "a", "b", "b"], 0.25),
    ],
)
def test_differences_without_variance_get_a_sign_test(differences: Any, groups: Any, p_value: float) -> None:
    assert compare(differences, groups).p_value == p_value


@pytest.mark.parametrize(
    ("differences", "groups", "why"),
    [
        ([], [], "there is no group"),
        ([0.3], [None], "there is 1 group"),
        ([0.3, 0.2, 0.4], ["a", "a", "a"], "there is 1 group"),
        ([0.3, math.nan], [None, None], "not a finite number"),
        ([0.3, math.inf], [None, None], "not a finite number"),
    ],
)
def test_what_cannot_be_compared_is_said(differences: Any, groups: Any, why: str) -> None:
    with pytest.raises(Incomparable, match=why):
        compare(differences, groups)


def history(*better: bool, error_rate: float = 0.05, comparisons: int = 100) -> list[Any]:
    looks: list[Any] = []
    for one in better:
        fresh, level = next_level(looks, error_rate, comparisons)
        looks.append(SimpleNamespace(fresh=fresh, level=level, better=one))
    return looks


def test_a_promotion_passes_its_level_on() -> None:
    levels = [look.level for look in history(False, True, True, False, False)]
    assert levels == pytest.approx([0.0005, 0.0005, 0.001, 0.0015, 0.0005])


@pytest.mark.parametrize("better", [(False,) * 130, (True,) * 130, (True, False) * 65])
def test_no_more_than_the_error_rate_is_ever_spent(better: tuple[bool, ...]) -> None:
    looks = history(*better)
    assert sum(look.fresh for look in looks) == pytest.approx(0.05)
    assert [look.level for look in looks[100:]] == [0.0] * 30
    # a rule that is changed on the way takes from the same budget
    later = [*history(*better[:50])]
    for _ in range(300):
        fresh, level = next_level(later, 0.05, 10_000)
        later.append(SimpleNamespace(fresh=fresh, level=level, better=False))
    assert sum(look.fresh for look in later) <= 0.05 + 1e-12


def test_a_guard_must_show_that_nothing_fell() -> None:
    flat = compare([0.001, -0.001] * 100, [None] * 200, bound=-0.02)
    assert broken("rougeL", flat, 0.02, 0.05) == ""
    fallen = compare([-0.05, -0.03] * 100, [None] * 200, bound=-0.02)
    assert broken("rougeL", fallen, 0.02, 0.05) == "guard rougeL fell by 0.04, and 0.02 is allowed"
    few = compare([0.3, -0.3, 0.1], [None] * 3, bound=-0.02)
    assert "a fall of 0.02 cannot be ruled out" in broken("rougeL", few, 0.02, 0.05)


def test_a_guard_is_written_as_a_reader_expects() -> None:
    assert Guard.parse("rougeL 0.02") == ("rougeL", "", "", 0.02)
    guard = Guard.parse("loss[topic=long travel] .5")
    assert guard == ("loss", "topic", "long travel", 0.5) and guard.name == "loss on topic=long travel"
    assert Guard.parse("judge.room:signs 1").metric == "judge.room:signs"
    for wrong in ("rougeL", "rougeL -0.02", "rougeL[topic] 0.1", "0.02", "rougeL 0.02 0.03", "rougeL nan"):
        with pytest.raises(ValueError, match="is no guard"):
            PromotionConfig(guards=[wrong])
