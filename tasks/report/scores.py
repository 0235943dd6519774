"""How base and tuned model score, and what that says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.config import METRICS, metric
from tasks.evaluation.facts import EvaluationFacts
from tasks.evaluation.tables import finding, left_out
from tasks.report import charts
from tasks.report.tables import read
from tasks.store.manifest import Manifest

FEW_GROUPS = 30
"""Groups of held-out rows below which the page warns that the interval itself is unsure."""
BAR = 220
"""Width of the interval bars' picture."""


def score_table(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Every metric with its interval, and in words what the headline metric says."""
    from tasks.evaluation.schema import HEALTH, SCORES

    every = read(folder / SCORES).to_pylist()
    rows = [row for row in every if row["slice"] is None]
    shares = [row for row in rows if row["metric"] in METRICS and row["metric"] != "loss"]
    others = [[row] for row in rows if row not in shares]  # each may have any range
    ticks: list[tuple[float, str]] = []
    for group in filter(None, [shares, *others]):
        drawn = charts.intervals([_bounds(row) for row in group], BAR)
        ticks = drawn.ticks if group is shares else ticks
        for row, bar in zip(group, drawn.bars, strict=True):
            row |= {"title": metric(row["metric"]).label, "bar": bar, "zero": drawn.zero}
    headline = rows[0]
    facts = manifest.facts(EvaluationFacts)
    return {
        "rows": rows,
        "champion": facts.champion,
        "left_out": left_out(facts),
        "champion_left_out": facts.champion_left_out,
        "slices": [row | {"title": metric(row["metric"]).label} for row in every if row["slice"] is not None],
        "health": [(title, facts.health[name]) for name, title in HEALTH.items()],
        "headline": headline,
        "percent": f"{100 * facts.confidence:g} %",
        "finding": finding(headline),
        "few": 1 < headline["groups"] < FEW_GROUPS,
        "ticks": ticks,
        "width": BAR,
    }


def _bounds(row: Mapping[str, Any]) -> tuple[float, float, float]:
    """Low, difference and high; a dot alone where there is no interval."""
    mean = row["difference"]
    return (mean, mean, mean) if row["low"] is None else (row["low"], mean, row["high"])
