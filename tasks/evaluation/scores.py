"""Rows with answers → scores of each model, and the differences between models with their intervals."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config import EvaluationConfig
from tasks.evaluation.compare import in_groups, paired_intervals
from tasks.evaluation.schema import HEALTH


def score(
    rows: list[dict[str, Any]], models: Sequence[str], config: EvaluationConfig, folder: Path
) -> list[dict[str, Any]]:
    """Score the answers of every row (written into the rows) and compare them: rows of `scores.parquet`.

    Args:
        rows: as `tasks.evaluation.metrics.scores` takes them, with their group.
        models: those of MODELS that answered.
        folder: for temporary files; one that is removed when this process is killed.
    """
    from tasks.evaluation.metrics import scores as scores_of

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for who in models:
            for name, values in scores_of(rows, who, config.metrics, scratch).items():
                for row, value in zip(rows, values, strict=True):
                    row[f"{who}_{name}"] = value
    table = {who: np.array([[row[f"{who}_{name}"] for name in config.metrics] for row in rows]) for who in models}
    groups = [row["group"] for row in rows]
    number = len(in_groups(table["base"], groups)[1])
    scores: list[dict[str, Any]] = [{"metric": name, "rows": len(rows), "groups": number} for name in config.metrics]
    for who in models:
        for line, mean in zip(scores, table[who].mean(axis=0).tolist(), strict=True):
            line[who] = mean
    for who in set(models) - {"tuned"}:
        found = paired_intervals(table["tuned"] - table[who], groups, config.confidence, config.seed)
        prefix = "" if who == "base" else f"{who}_"
        for line, bounds in zip(scores, found, strict=True):
            line |= zip((f"{prefix}difference", f"{prefix}low", f"{prefix}high"), bounds, strict=True)
    return scores


def health(rows: list[dict[str, Any]], models: Sequence[str]) -> dict[str, dict[str, float]]:
    """Figure → model → mean over rows, of rows that `score` has seen."""
    return {name: {who: sum(row[f"{who}_{name}"] for row in rows) / len(rows) for who in models} for name in HEALTH}
