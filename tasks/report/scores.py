"""The score tables of the report, with a dot plot, and the verdict."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.config import METRICS, metric
from tasks.evaluation.facts import WATCH, EvaluationFacts
from tasks.evaluation.tables import FEW, finding, left_out, score_table, verdict
from tasks.report import charts
from tasks.report.tables import read
from tasks.store.manifest import Manifest

PLOT = 220
"""Width of the dot plot."""


def scores(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """Every metric with its intervals, and the verdict of the first one."""
    from tasks.evaluation.schema import HEALTH, SCORES

    every, facts = read(folder / SCORES).to_pylist(), manifest.facts(EvaluationFacts)
    rows = [row for row in every if row["slice"] is None]
    percent, first = f"{100 * facts.confidence:g}", rows[0]
    return {
        "verdict": verdict(rows),
        "tables": {
            "all": drawn(rows, percent),
            "watch": drawn([row for row in every if row["slice"] == WATCH], percent),
            "slices": drawn([row for row in every if row["slice"] not in (None, WATCH)], percent),
        },
        "champion": facts.champion,
        "left_out": left_out(facts),
        "champion_left_out": facts.champion_left_out,
        "health": [(title, facts.health[name]) for name, title in HEALTH.items()],
        "headline": first | {"title": metric(first["metric"]).title, "label": metric(first["metric"]).label},
        "percent": f"{percent} %",
        "finding": finding(first),
        "champion_finding": finding(first, "champion_") if facts.champion else "",
        "few": 1 < first["groups"] < FEW,
        "width": PLOT,
    }


def drawn(rows: list[dict[str, Any]], percent: str) -> dict[str, Any]:
    """A table of scores with a dot for each model. Shares have a common axis, every other metric its own."""
    titles, *cells = score_table(rows, percent)
    lines: list[dict[str, Any]] = [{"cells": line, "row": row} for line, row in zip(cells, rows, strict=True)]
    shares = [line for line in lines if line["row"]["metric"] in METRICS and line["row"]["metric"] != "loss"]
    ticks: list[tuple[float, str]] = []
    for group in [shares, *([line] for line in lines if line not in shares)]:
        if group:
            places, found = charts.on_one_axis([_values(line["row"]) for line in group], PLOT)
            ticks = found if group is shares else ticks
            for line, (low, high, *dots) in zip(group, places, strict=True):
                whose = ["base", *(["champion"] if len(dots) > 2 else []), "tuned"]
                line |= {"low": min(low, high), "high": max(low, high), "dots": list(zip(whose, dots, strict=True))}
    return {"titles": titles, "lines": lines, "ticks": ticks}


def _values(row: Mapping[str, Any]) -> list[float]:
    """Ends of the tuned model's interval, then the score of each model."""
    base, tuned = row["base"], row["tuned"]
    interval = [tuned, tuned] if row["low"] is None else [base + row["low"], base + row["high"]]
    return [*interval, base, *([row["champion"]] if row["champion"] is not None else []), tuned]
