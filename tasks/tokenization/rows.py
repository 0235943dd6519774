"""Prompts become ids and labels: the part of the stage that every process does for itself."""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import TokenizationConfig
from tasks.process.pool import Result, serve
from tasks.tokenization.schema import LEARNT, NOT_LEARNT, TOKEN_SCHEMA
from tasks.tokenization.truncation import fit
from tasks.tokenization.vocabulary import Vocabulary

COUNTED_SCHEMA = TOKEN_SCHEMA.append(pa.field(LEARNT, pa.int32()))
COLUMNS = ["id", "split", "group", "prompt", "completion", "learnt", "input_start", "input_end"]
AT_ONCE = 64
"""Rows handed to the tokenizer together: its results take a hundred times the memory of the ids in them."""


def work(job: dict[str, Any], units: Iterable[int]) -> Iterator[Result]:
    """The tokens of a row group.

    Args:
        job: `prompts` (file), `rendered`, `model` (folder), `limit` and `config`.
        units: row groups of the file.
    Yields:
        rows of COUNTED_SCHEMA; noted is a ledger line for each row that is not among them or changed:
        [verdict, id, split, reason, detail].
    """
    config = TokenizationConfig(**job["config"])
    vocabulary = Vocabulary(Path(job["model"]), job["rendered"])
    source = pq.ParquetFile(job["prompts"])
    for unit in units:
        rows = source.read_row_group(unit, COLUMNS).to_pylist()
        ledger: list[list[str]] = []
        yield Result(_encoded(rows, vocabulary, job["limit"], config, ledger), ledger)


def _encoded(
    rows: list[dict[str, Any]],
    vocabulary: Vocabulary,
    limit: int,
    config: TokenizationConfig,
    ledger: list[list[str]],
) -> pa.RecordBatch:
    """Rows as Arrow lists over one flat array each."""
    flat = array("i")
    kept: list[dict[str, Any]] = []
    starts, answers, learnt = [0], [], []  # where each kept row and its answer begin; prompt tokens learnt all the same
    for row, prompt, answer in _texts_encoded(rows, vocabulary):
        length = len(prompt) + len(answer)
        if length > limit:
            fitted = fit(row, prompt, answer, length - limit, config, vocabulary)
            if fitted is None:
                detail = f"{length:,} tokens, the limit is {limit:,}"
                if config.too_long == "truncate_prompt" and row["input_start"] is None:
                    detail += "; the text of formatting.input_column, which may be shortened, is not in the prompt once"
                ledger.append(["lost", row["id"], row["split"], "too long", detail])
                continue
            detail = f"{length - limit:,} of {length:,} tokens were taken out"
            ledger.append(["changed", row["id"], row["split"], "shortened", detail])
            prompt, answer = fitted
        if spans := row["learnt"]:
            inside = vocabulary.inside(row["prompt"], [(span["start"], span["end"]) for span in spans])
            learnt += [len(flat) + index for index in inside]
        flat.fromlist(prompt)
        answers.append(len(flat))
        flat.fromlist(answer)
        starts.append(len(flat))
        kept.append(row)
    ids = np.frombuffer(flat, np.int32) if flat else np.zeros(0, np.int32)
    labels = ids.copy()
    for start, answer_start in zip(starts, answers, strict=False):
        labels[start:answer_start] = NOT_LEARNT
    labels[learnt] = ids[learnt]
    offsets = np.array(starts, np.int32)
    before = np.concatenate([[0], np.cumsum(labels != NOT_LEARNT)])[offsets]
    arrays = [
        *(pa.array([row[name] for row in kept], pa.string()) for name in ("id", "split", "group")),
        *(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)) for values in (ids, labels)),
        pa.array(np.diff(before).astype(np.int32)),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=COUNTED_SCHEMA)


def _texts_encoded(
    rows: list[dict[str, Any]], vocabulary: Vocabulary
) -> Iterator[tuple[dict[str, Any], list[int], list[int]]]:
    """Each row with the ids of its prompt and of its answer, which ends with the end of sequence."""
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        ids = vocabulary.encode([row["prompt"] for row in some] + [row["completion"] for row in some])
        for row, prompt, answer in zip(some, ids[: len(some)], ids[len(some) :], strict=True):
            if not answer or answer[-1] != vocabulary.eos:
                answer.append(vocabulary.eos)
            yield row, vocabulary.prefix + prompt, answer


if __name__ == "__main__":
    serve(work)
