"""Rows with answers → scores of each model, and differences between models with intervals."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tasks.config import EvaluationConfig
from tasks.evaluation.compare import in_groups, paired_intervals, smallest_gains
from tasks.evaluation.facts import WATCH
from tasks.evaluation.schema import HEALTH
from tasks.evaluation.slices import slices_of


def score(
    rows: list[dict[str, Any]],
    models: Sequence[str],
    config: EvaluationConfig,
    folder: Path,
    watched: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Write the scores of all answers into the rows, and return the rows of `scores.parquet`.

    Args:
        rows: see `tasks.evaluation.metrics.scores`, with group and slices.
        models: those of MODELS that answered.
        watched: rows of watch sets; WATCH has the name of the set.
        folder: for temporary files; it is removed if this process is killed.
    """
    from tasks.evaluation.metrics import scores as scores_of

    watched = watched or []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for who in models:
            for name, values in scores_of([*rows, *watched], who, config.metrics, scratch).items():
                for row, value in zip([*rows, *watched], values, strict=True):
                    row[f"{who}_{name}"] = value
    scores = _compared(rows, models, config, None, None)
    for column, text, numbers in slices_of(rows, config.slices):
        scores += _compared([rows[n] for n in numbers], models, config, column, text)
    for name in dict.fromkeys(row[WATCH] for row in watched):
        scores += _compared([row for row in watched if row[WATCH] == name], models, config, WATCH, name)
    return scores


def _compared(
    rows: list[dict[str, Any]], models: Sequence[str], config: EvaluationConfig, column: str | None, value: str | None
) -> list[dict[str, Any]]:
    """A row of `scores.parquet` for each metric, about all rows or a slice."""
    table = {who: np.array([[row[f"{who}_{name}"] for name in config.metrics] for row in rows]) for who in models}
    groups = [row["group"] for row in rows]
    same = {"slice": column, "value": value, "rows": len(rows), "groups": len(in_groups(table["base"], groups)[1])}
    scores: list[dict[str, Any]] = [{"metric": name, **same} for name in config.metrics]
    for who in models:
        for line, mean in zip(scores, table[who].mean(axis=0).tolist(), strict=True):
            line[who] = mean
    for who in [who for who in models if who != "tuned"]:
        differences, prefix = table["tuned"] - table[who], "" if who == "base" else f"{who}_"
        found = paired_intervals(differences, groups, config.confidence, config.seed)
        smallest = smallest_gains(differences, groups, config.confidence)
        for line, bounds, gain in zip(scores, found, smallest, strict=True):
            line |= zip((f"{prefix}difference", f"{prefix}low", f"{prefix}high"), bounds, strict=True)
            line[f"{prefix}smallest_gain"] = gain
    return scores


def health(rows: list[dict[str, Any]], models: Sequence[str]) -> dict[str, dict[str, float]]:
    """Figure → model → mean over rows; `score` has written the figures into the rows."""
    return {name: {who: sum(row[f"{who}_{name}"] for row in rows) / len(rows) for who in models} for name in HEALTH}
