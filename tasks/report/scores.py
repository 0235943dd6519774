"""How base and tuned model score, and what that says."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.config import METRICS
from tasks.report import charts
from tasks.report.tables import read
from tasks.store.manifest import Manifest

HEADLINE = "rougeL"
FEW_ROWS = 20
"""Held-out rows below which the page warns that the interval itself is unsure."""
BAR = 220
"""Width of the interval bars' picture."""


def score_table(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Every metric with its interval, and in words what the headline metric says."""
    from tasks.evaluation.schema import HEALTH, SCORES

    rows = read(folder / SCORES).to_pylist()
    shipped = [row for row in rows if row["metric"] in METRICS]
    own = [[row] for row in rows if row["metric"] not in METRICS]  # each may have any range
    ticks: list[tuple[float, str]] = []
    for group in filter(None, [shipped, *own]):
        drawn = charts.intervals([(r["low"], r["difference"], r["high"]) for r in group], BAR)
        ticks = drawn.ticks if group is shipped else ticks
        for row, bar in zip(group, drawn.bars, strict=True):
            row |= {"title": METRICS.get(row["metric"], row["metric"]), "bar": bar, "zero": drawn.zero}
    headline = headline_of(rows)
    confidence = manifest.info.get("confidence", manifest.identity.config.get("confidence"))
    return {
        "rows": rows,
        "health": [(title, manifest.info["health"][name]) for name, title in HEALTH.items()],
        "headline": headline,
        "percent": f"{100 * confidence:g} %" if confidence else "",
        "finding": finding(headline),
        "few": 1 < headline["rows"] < FEW_ROWS,
        "ticks": ticks,
        "width": BAR,
    }


def headline_of(scores: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metric that the verdict is about: ROUGE-L, or the first where that is not among them."""
    return next((score for score in scores if score["metric"] == HEADLINE), scores[0])


def finding(score: Mapping[str, Any]) -> str:
    """`better`, `worse`, `undecided`, or `single` where one row allows no interval."""
    if score["rows"] < 2:
        return "single"
    return "better" if score["low"] > 0 else "worse" if score["high"] < 0 else "undecided"
