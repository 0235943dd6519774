"""What evaluation takes and what it hands on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tasks.config import EvaluationConfig

MODELS = ("base", "champion", "tuned")
"""Who may answer: the base alone, with the version in use, with the new adapter. A run may have no champion."""
PREDICTIONS = "predictions.parquet"
WATCHED = "watched.parquet"
"""As PREDICTIONS, of the rows of the watch sets; the column WATCH has the set's name."""
SCORES = "scores.parquet"
FACTS = "evaluation.json"
HEALTH = {
    "empty": "empty",
    "never_ending": "never-ending",
    "repeating": "repeating",
    "copied": "copied from the prompt",
    "length": "length ÷ reference",
}
"""Figures of the answers beside their scores, with their titles: shares of the answers, and the mean of a ratio."""


def prediction_schema(metrics: Sequence[str], models: Sequence[str] = MODELS, slices: Sequence[str] = ()) -> pa.Schema:
    """Columns of `predictions.parquet` where these metrics score the answers of these models.

    Args:
        slices: columns by which the rows are scored apart, as text.
    """
    return pa.schema(
        [
            ("id", pa.string()),
            ("group", pa.string()),  # rows with one value belong together; null: it belongs to none
            ("prompt", pa.string()),  # as the model read it, decoded
            ("references", pa.list_(pa.string())),
            ("target_tokens", pa.int32()),  # that the held-out loss is the mean over
            *((name, pa.string()) for name in (*models, *slices)),
            *((f"{who}_{name}", pa.float64()) for who in models for name in (*metrics, *HEALTH)),
        ]
    )


SCORE_SCHEMA = pa.schema(
    [
        ("metric", pa.string()),
        # a column, and the value that the rows have in it; null: all held-out rows. WATCH: the rows of a watch set
        ("slice", pa.string()),
        ("value", pa.string()),
        ("rows", pa.int64()),
        ("groups", pa.int64()),  # a row without a group counts as one
        *((who, pa.float64()) for who in MODELS),  # means over rows; without a champion its columns are null
        ("difference", pa.float64()),  # tuned minus base, mean over rows
        ("low", pa.float64()),  # paired bootstrap interval of the difference over groups; null: one group
        ("high", pa.float64()),
        ("smallest_gain", pa.float64()),  # that four test sets of five would show at this level, were it real
        ("champion_difference", pa.float64()),  # tuned minus champion, and its interval
        ("champion_low", pa.float64()),
        ("champion_high", pa.float64()),
        ("champion_smallest_gain", pa.float64()),
    ]
)


class EvaluationJob(BaseModel):
    """What the child process does. Validate with the context `TRUSTED`, which permits metrics of the user's own.

    Args:
        tokens, prompts: Parquet files of the earlier stages.
        rows: folder of the download stage, where slices are asked for.
        watch: name → folder of a watch set, and the text where its answers are cut.
        ending: text where an answer is cut.
        eos: the tokenizer's end-of-sequence token.
        model, adapter, champion: folders.
        trained_before: files of prompts that champion and adapter, or those that they continue, were trained on, beside
            `prompts`.
        digests: content of `model`, and of the adapters `tuned` and `champion`.
        training: the fields that say how the base is loaded (tasks.model.quantization.FIELDS).
        output: folder to write to.
        share: Parquet file with rows that a process is to answer and keep, and no more: one of several, each on a GPU.
        device: the GPU of such a process, as CUDA_VISIBLE_DEVICES has it.
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
