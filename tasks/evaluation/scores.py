"""Rows with answers → scores of each model, and the differences between models with their intervals."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config import EvaluationConfig
from tasks.evaluation.compare import in_groups, paired_intervals
from tasks.evaluation.schema import HEALTH

MODELS = ("base", "tuned")


def score(rows: list[dict[str, Any]], config: EvaluationConfig, folder: Path) -> list[dict[str, Any]]:
    """Score the answers of every row (written into the rows) and compare them: rows of `scores.parquet`.

    Args:
        rows: as `tasks.evaluation.metrics.scores` takes them, with their group.
        folder: for temporary files; one that is removed when this process is killed.
    """
    from tasks.evaluation.metrics import scores as scores_of

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for who in MODELS:
            for name, values in scores_of(rows, who, config.metrics, scratch).items():
                for row, value in zip(rows, values, strict=True):
                    row[f"{who}_{name}"] = value
    base, tuned = (np.array([[row[f"{who}_{name}"] for name in config.metrics] for row in rows]) for who in MODELS)
    groups = [row["group"] for row in rows]
    found = paired_intervals(tuned - base, groups, config.confidence, config.seed)
    return [
        {
            "metric": name,
            "rows": len(rows),
            "groups": len(in_groups(base, groups)[1]),
            "base": float(base[:, column].mean()),
            "tuned": float(tuned[:, column].mean()),
            "difference": difference,
            "low": low,
            "high": high,
        }
        for column, (name, (difference, low, high)) in enumerate(zip(config.metrics, found, strict=True))
    ]


def health(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Figure → model → mean over rows, of rows that `score` has seen."""
    return {name: {who: sum(row[f"{who}_{name}"] for row in rows) / len(rows) for who in MODELS} for name in HEALTH}
