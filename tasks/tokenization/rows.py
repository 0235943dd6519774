"""Prompts become ids and labels: the part of the stage that every process does for itself."""

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import TokenizationConfig
from tasks.errors import UserError
from tasks.process.pool import Result, serve
from tasks.tokenization.schema import IGNORE_INDEX, LEARNT, TOKEN_SCHEMA
from tasks.tokenization.truncation import fit
from tasks.tokenization.vocabulary import Vocabulary

COUNTED_SCHEMA = TOKEN_SCHEMA.append(pa.field(LEARNT, pa.int32()))
COLUMNS = ["id", "split", "group", "prompt", "completion", "learnt", "input_start", "input_end"]
AS_TEXT = "{} is learnt as text and not as the model's token, which formatting.style: chat writes"
AT_ONCE = 64
"""Rows handed to the tokenizer together: its results take a hundred times the memory of the ids in them."""


def work(job: dict[str, Any], units: Iterable[int]) -> Iterator[Result]:
    """The tokens of a row group.

    Args:
        job: `prompts` (file), `vocabulary` (as saved), `limit` and `config`.
        units: row groups of the file.
    Yields:
        rows of COUNTED_SCHEMA; noted is a ledger line for each row that is not among them or changed:
        [verdict, id, split, reason, detail].
    """
    config = TokenizationConfig(**job["config"])
    vocabulary = Vocabulary.opened(**job["vocabulary"])
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
    kept: list[dict[str, Any]] = []
    flat, starts, answers = array("i"), [0], array("i")  # where each kept row and its answer begin
    learnt = array("q")  # tokens of prompts that are learnt all the same
    for row, ids in _texts_encoded(rows, vocabulary):
        prefix = len(vocabulary.prefix)
        text = row["prompt"] + row["completion"]
        if vocabulary.special_names and (found := vocabulary.special_names.search(text)):
            ledger.append(["kept", row["id"], row["split"], "special token as text", AS_TEXT.format(found[0])])
        split = vocabulary.split(text, ids)
        answer = prefix + split(len(row["prompt"]))
        spans = [(prefix + split(span["start"]), prefix + split(span["end"])) for span in row["learnt"] or ()]
        ids = [*vocabulary.prefix, *ids, *([] if ids and ids[-1] == vocabulary.eos else [vocabulary.eos])]
        if len(ids) > limit:
            length, fitted = len(ids), fit(row, ids, answer, len(ids) - limit, config, vocabulary)
            if fitted is None:
                detail = f"{length:,} tokens, the limit is {limit:,}"
                if config.too_long == "truncate_prompt" and row["input_start"] is None:
                    detail += "; the text of formatting.input_column, which may be shortened, is not in the prompt once"
                ledger.append(["lost", row["id"], row["split"], "too long", detail])
                continue
            ids, answer = fitted
            detail = f"{length - len(ids):,} of {length:,} tokens were taken out"
            ledger.append(["changed", row["id"], row["split"], "shortened", detail])
        for start, end in spans:
            learnt.extend(range(len(flat) + start, len(flat) + end))
        answers.append(len(flat) + answer)
        flat.fromlist(ids)
        starts.append(len(flat))
        kept.append(row)
    tokens = np.frombuffer(flat, np.int32) if flat else np.zeros(0, np.int32)
    if vocabulary.size and tokens.size and tokens.max() >= vocabulary.size:
        highest = vocabulary.tokenizer.id_to_token(int(tokens.max()))
        raise UserError(f"model.base: the tokenizer has the token {highest}, and the model has no embedding for it.")
    labels = tokens.copy()
    for first, after in zip(starts, answers, strict=False):
        labels[first:after] = IGNORE_INDEX
    labels[learnt] = tokens[learnt]
    offsets = np.array(starts, np.int32)
    before = np.concatenate([[0], np.cumsum(labels != IGNORE_INDEX)])[offsets]
    arrays = [
        *(pa.array([row[name] for row in kept], pa.string()) for name in ("id", "split", "group")),
        *(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)) for values in (tokens, labels)),
        pa.array(np.diff(before).astype(np.int32)),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=COUNTED_SCHEMA)


def _texts_encoded(rows: list[dict[str, Any]], vocabulary: Vocabulary) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Each row with the ids of its prompt and answer, which are one text."""
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        yield from zip(some, vocabulary.encode([row["prompt"] + row["completion"] for row in some]), strict=True)


if __name__ == "__main__":
    serve(work)
