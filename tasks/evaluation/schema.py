"""Files and job of the evaluation stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tasks.config import EvaluationConfig

MODELS = ("base", "champion", "tuned")
"""The base alone, with the adapter in use, and with the new adapter. A run may have no champion."""
PREDICTIONS = "predictions.parquet"
WATCHED = "watched.parquet"
"""The same for the rows of the watch sets; the column WATCH has the name of the set."""
SCORES = "scores.parquet"
FACTS = "evaluation.json"
HEALTH = {
    "empty": "empty",
    "never_ending": "never-ending",
    "repeating": "repeating",
    "copied": "copied from the prompt",
    "length": "length ÷ reference",
}
"""Figures of the answers with their titles: shares of the answers, and the mean ratio of lengths."""


def prediction_schema(metrics: Sequence[str], models: Sequence[str] = MODELS, slices: Sequence[str] = ()) -> pa.Schema:
    """Columns of `predictions.parquet`; `slices` are further columns, as text."""
    return pa.schema(
        [
            ("id", pa.string()),
            ("group", pa.string()),  # rows of one group are correlated; null: the row is a group of its own
            ("prompt", pa.string()),  # as the model read it, decoded
            ("references", pa.list_(pa.string())),
            ("target_tokens", pa.int32()),  # the held-out loss is the mean over them
            *((name, pa.string()) for name in (*models, *slices)),
            *((f"{who}_{name}", pa.float64()) for who in models for name in (*metrics, *HEALTH)),
        ]
    )


SCORE_SCHEMA = pa.schema(
    [
        ("metric", pa.string()),
        # column and value of a slice; null: all held-out rows; WATCH and a name: a watch set
        ("slice", pa.string()),
        ("value", pa.string()),
        ("rows", pa.int64()),
        ("groups", pa.int64()),  # a row without a group counts as one
        *((who, pa.float64()) for who in MODELS),  # means over rows; without a champion its columns are null
        # tuned minus base and tuned minus champion, mean over rows; their paired bootstrap intervals over groups (null:
        # there is one group); and the true gain that such test sets show with probability 0.8 at this level
        *(
            (prefix + name, pa.float64())
            for prefix in ("", "champion_")
            for name in ("difference", "low", "high", "smallest_gain")
        ),
    ]
)


class EvaluationJob(BaseModel):
    """Job of the child process. Validate it with the context `TRUSTED`, which permits metrics of the user's own.

    Args:
        tokens, prompts: Parquet files of the earlier stages.
        rows: folder of the download stage, for the columns of slices.
        watch: name → folder of a watch set, and the text where its answers are cut.
        ending: text where an answer is cut.
        eos: the tokenizer's end-of-sequence token.
        model, adapter, champion: folders.
        trained_before: files of prompts, beside `prompts`, that these adapters or those they continue were trained on.
        digests: content of `model`, and of the adapters `tuned` and `champion`.
        training: the fields for loading the base (tasks.model.quantization.FIELDS).
        output: folder to write to.
        share: Parquet file with rows; if it is set, the process answers and keeps these and does nothing else.
        device: GPU of such a process, as in CUDA_VISIBLE_DEVICES.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: Path
    prompts: Path
    rows: Path | None
    watch: dict[str, tuple[Path, str]]
    ending: str
    eos: int
    model: Path
    adapter: Path
    champion: Path | None
    trained_before: list[Path]
    digests: dict[str, str]
    training: dict[str, Any]
    config: EvaluationConfig
    output: Path
    share: Path | None = None
    device: str = ""
