"""What evaluation hands on."""

import pyarrow as pa

PREDICTIONS = "predictions.parquet"
SCORES = "scores.parquet"
METRICS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

PREDICTION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),  # as the model read it, decoded
        ("references", pa.list_(pa.string())),
        ("base", pa.string()),
        ("tuned", pa.string()),
        *((f"{who}_{name}", pa.float64()) for who in ("base", "tuned") for name in METRICS),
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
