"""What evaluation hands on."""

from collections.abc import Sequence

import pyarrow as pa

PREDICTIONS = "predictions.parquet"
SCORES = "scores.parquet"
HEALTH = {
    "empty": "empty",
    "never_ending": "never-ending",
    "repeating": "repeating",
    "copied": "copied from the prompt",
    "length": "length ÷ reference",
}
"""Figures of the answers beside their scores, with their titles: shares of the answers, and the mean of a ratio."""


def prediction_schema(metrics: Sequence[str]) -> pa.Schema:
    """Columns of `predictions.parquet` where these metrics score the answers."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("prompt", pa.string()),  # as the model read it, decoded
            ("references", pa.list_(pa.string())),
            ("base", pa.string()),
            ("tuned", pa.string()),
            *((f"{who}_{name}", pa.float64()) for who in ("base", "tuned") for name in (*metrics, *HEALTH)),
        ]
    )


SCORE_SCHEMA = pa.schema(
    [
        ("metric", pa.string()),
        ("rows", pa.int64()),
        ("base", pa.float64()),
        ("tuned", pa.float64()),
        ("difference", pa.float64()),  # tuned minus base, mean over rows
        ("low", pa.float64()),  # paired bootstrap interval of the difference
        ("high", pa.float64()),
    ]
)
