"""The held-out rows, and which of them the champion was trained on: those say nothing of rows that are new to it."""

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.errors import UserError
from tasks.formatting.repeats import common_part, signs, trained_on
from tasks.tokenization.schema import IGNORE_INDEX

SAMPLE = 1000
"""Held-out rows that show what all rows share, as in formatting."""
BATCH = 10_000


def seen_rows(tokens: Path, prompts: Path, trained: Path) -> tuple[set[str], int]:
    """Held-out rows that another adapter was trained on, on near copies, or on their prompts with other answers.

    The candidate was trained on no held-out row and no near copy of one: formatting left those out. Prompts that it was
    trained on as well give neither an advantage and stay.

    Args:
        tokens, prompts: files of the candidate.
        trained: prompts.parquet that the other adapter was trained on.
    Returns:
        their ids, and how many held-out rows there are in all.
    """
    there = {row["id"] for row in _read(tokens, ["id"])}
    rows = [row for row in _read(prompts, ["id", "prompt", "completion"]) if row["id"] in there]
    copied, prompted = _seen(rows, trained)
    if (prompted & ~copied).any():
        prompted &= ~_seen(rows, prompts)[1]
    return {row["id"] for row, out in zip(rows, (copied | prompted).tolist(), strict=True) if out}, len(rows)


def _seen(held_out: list[dict[str, Any]], prompts: Path) -> tuple[np.ndarray, np.ndarray]:
    """As `trained_on`, of rows with prompt and completion, and the training rows of a file."""
    texts = [(row["prompt"], row["completion"]) for row in held_out]
    common = common_part(texts[:SAMPLE])

    def trained() -> Iterator[list[bytes]]:
        for batch in pq.ParquetFile(prompts).iter_batches(BATCH, columns=["split", "prompt", "completion"]):
            rows = [(row["prompt"], row["completion"]) for row in batch.to_pylist() if row["split"] == "train"]
            if rows:
                yield signs(rows, common)

    return trained_on(signs(texts, common), trained())


def _read(file: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    return pq.read_table(file, columns=columns, filters=pc.field("split") == "test").to_pylist()


def held_out(tokens: Path, prompts: Path, max_rows: int, but: Collection[str] = ()) -> list[dict[str, Any]]:
    """The held-out rows with tokens, prompt as token ids, and references; with max_rows the same ones in every run.

    Args:
        but: ids of rows that are left out.
    Raises:
        UserError: no held-out row is left.
    """
    references = {row["id"]: row["references"] for row in _read(prompts, ["id", "references"])}
    rows = [row for row in _read(tokens) if row["id"] not in but]
    if not rows:
        raise UserError("evaluation: no held-out row is left after tokenization; the ledger says why each was lost.")
    if max_rows:
        rows = sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest())[:max_rows]
    return [
        {
            **row,
            "target_tokens": sum(label != IGNORE_INDEX for label in row["labels"]),
            "prompt_ids": row["input_ids"][: prompt_length(row["labels"])],
            "references": references[row["id"]],
        }
        for row in rows
    ]


def prompt_length(labels: list[int]) -> int:
    """Tokens before the last answer."""
    last = len(labels)
    while last > 0 and labels[last - 1] != IGNORE_INDEX:
        last -= 1
    return last
