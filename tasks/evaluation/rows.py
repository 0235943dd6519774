"""The held-out rows, without those that a compared adapter was trained on."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.errors import UserError
from tasks.evaluation.facts import WATCH
from tasks.evaluation.schema import EvaluationJob
from tasks.formatting.repeats import common_part, signs, trained_on
from tasks.formatting.schema import PROMPTS
from tasks.store.ledger import Ledger
from tasks.tokenization.schema import IGNORE_INDEX, TOKENS

Row = dict[str, Any]
SAMPLE = 1000
"""Held-out rows from which the common part of all rows is found, as in formatting."""
BATCH = 10_000


def rows_to_answer(job: EvaluationJob) -> tuple[list[Row], list[Row], int, str]:
    """The rows of the held-out split and of the watch sets, without those that champion or adapter was trained on.

    Returns:
        held-out rows and watched rows; WATCH has the name of a row's set (None: held out), `ending` the text where its
        answer is cut. Then how many held-out rows are left out, and why the champion is not compared: if all held-out
        rows would be left out, they are compared without it.
    Raises:
        UserError: no held-out row is left.
    """
    before, why_not = job.trained_before, ""
    seen, count = seen_rows(job.tokens, job.prompts, before)
    if len(seen) == count:
        why_not = "every held-out row was trained on by it, or by an adapter that training continued"
        print(f"the champion is not compared: {why_not}")
        before, seen = [], set()
    rows = held_out(job.tokens, job.prompts, job.config.max_rows, seen)
    rows = [row | {WATCH: None, "ending": job.ending} for row in rows]
    left_out, watched = [(id, "test") for id in sorted(seen)], list[Row]()
    for name, (folder, ending) in job.watch.items():
        files = folder / "tokens" / TOKENS, folder / "prompts" / PROMPTS
        seen_too, count = seen_rows(*files, before)
        left_out += [(id, name) for id in sorted(seen_too)]
        if len(seen_too) < count:
            watched += [row | {WATCH: name, "ending": ending} for row in held_out(*files, 0, seen_too)]
    ledger = Ledger("evaluate", job.output)
    for id, name in left_out:
        ledger.add(
            "left out", id, name, "trained on", "champion or adapter was trained on it, a near copy or its prompt"
        )
    ledger.write()
    if left_out:
        of_watch_sets = len(left_out) - len(seen)
        print(f"left out, since they were trained on: {len(seen):,} held-out rows, {of_watch_sets:,} of watch sets")
    return rows, watched, len(seen), why_not


def seen_rows(tokens: Path, prompts: Path, trained: Sequence[Path]) -> tuple[set[str], int]:
    """Held-out rows that were in other training data: as they are, as near copies, or their prompts alone.

    A prompt that the candidate was trained on too gives no side an advantage, so its row stays.

    Args:
        tokens, prompts: files of the candidate.
        trained: files of prompts of the other trainings.
    Returns:
        ids of these rows, and the number of all held-out rows.
    """
    there = {row["id"] for row in _read(tokens, ["id"])}
    if not trained:
        return set(), len(there)
    rows = [row for row in _read(prompts, ["id", "prompt", "completion"]) if row["id"] in there]
    copied, prompted = _seen(rows, trained)
    if (prompted & ~copied).any():
        prompted &= ~_seen(rows, [prompts])[1]
    return {row["id"] for row, out in zip(rows, (copied | prompted).tolist(), strict=True) if out}, len(rows)


def _seen(held_out: list[Row], trained: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """`trained_on` for held-out rows and the training rows of files."""
    texts = [(row["prompt"], row["completion"]) for row in held_out]
    common = common_part(texts[:SAMPLE])

    def training_rows() -> Iterator[list[bytes]]:
        for file in trained:
            for batch in pq.ParquetFile(file).iter_batches(BATCH, columns=["split", "prompt", "completion"]):
                rows = [(row["prompt"], row["completion"]) for row in batch.to_pylist() if row["split"] == "train"]
                if rows:
                    yield signs(rows, common)

    return trained_on(signs(texts, common), training_rows())


def _read(file: Path, columns: list[str] | None = None) -> list[Row]:
    return pq.read_table(file, columns=columns, filters=pc.field("split") == "test").to_pylist()


def held_out(tokens: Path, prompts: Path, max_rows: int, but: Collection[str] = ()) -> list[Row]:
    """The held-out rows with tokens, prompt ids and references; `max_rows` takes the same ones in every run.

    Args:
        but: ids of rows to leave out.
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
