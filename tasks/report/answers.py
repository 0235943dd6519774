"""Answers of base and tuned model side by side: the rows that gained most and least."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.config import metric as metric_of
from tasks.report import charts
from tasks.report.tables import read, rows_at
from tasks.text import excerpt


def answers(folder: Path, metric: str) -> dict[str, Any]:
    """Most improved, median and most worsened held-out row by a metric, and how the differences spread."""
    from tasks.evaluation.schema import PREDICTIONS

    file = folder / PREDICTIONS
    table = read(file, [f"base_{metric}", f"tuned_{metric}"])
    base, tuned = (column.to_pylist() for column in table.columns)
    gains = [metric_of(metric).gain(after - before) for before, after in zip(base, tuned, strict=True)]
    ranked = sorted((-gain, n) for n, gain in enumerate(gains))
    change = [-loss for loss, _ in ranked]
    last = len(ranked) - 1
    picks = {last // 2: "median change"}
    picks[last] = "most worsened" if change[last] < 0 else "least improved" if change[last] > 0 else "least changed"
    picks[0] = "most improved" if change[0] > 0 else "least worsened" if change[0] < 0 else "least changed"
    if last == 0:
        picks = {0: "the only row"}
    rows = rows_at(file, {ranked[pick][1] for pick in picks})
    return {
        "chart": charts.sorted_bars("Gain by row", "held-out rows, lowest gain to highest", change),
        "better": sum(c > 0 for c in change),
        "worse": sum(c < 0 for c in change),
        "equal": sum(c == 0 for c in change),
        "title": metric_of(metric).title,
        "rows": [answer_row(rows[ranked[pick][1]], label, metric) for pick, label in sorted(picks.items())],
    }


def answer_row(row: Mapping[str, Any], label: str, metric: str) -> dict[str, Any]:
    return {
        "label": label,
        "id": row["id"],
        "base_score": row[f"base_{metric}"],
        "tuned_score": row[f"tuned_{metric}"],
        "champion_score": row.get(f"champion_{metric}"),
        "champion": excerpt(row["champion"]) if row.get("champion") is not None else None,
        "prompt": excerpt(row["prompt"], times=4),
        "references": [excerpt(text) for text in row["references"][:5]],
        "more_references": max(0, len(row["references"]) - 5),
        "base": excerpt(row["base"]),
        "tuned": excerpt(row["tuned"]),
    }
