"""prompts.parquet → tokens.parquet: ids and labels, loss on the answer alone, end-of-sequence always learnt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import TokenizationConfig
from tasks.store.ledger import Ledger
from tasks.tokenization.schema import NOT_LEARNT, TOKEN_SCHEMA, TOKENS
from tasks.tokenization.truncation import shorten
from tasks.tokenization.vocabulary import Vocabulary

BATCH = 4096


def write_tokens(
    prompts: Path, special_tokens: str, model: Path, limit: int, config: TokenizationConfig, folder: Path
) -> dict[str, Any]:
    """Tokenize every prompt.

    Args:
        prompts: prompts.parquet of formatting.
        special_tokens: `add` or `rendered`, as formatting noted it.
        model: the base model's folder.
        limit: longest row in tokens.
    Returns:
        counts for the manifest: rows, tokens, learnt_tokens, longest, and what the ledger says.
    """
    vocabulary = Vocabulary(model, rendered=special_tokens == "rendered")
    ledger = Ledger("tokenize", folder)
    counts = {"rows": 0, "train": 0, "test": 0, "tokens": 0, "learnt_tokens": 0, "longest": 0, "limit": limit}
    with pq.ParquetWriter(folder / TOKENS, TOKEN_SCHEMA, compression="zstd") as writer:
        for batch in pq.ParquetFile(prompts).iter_batches(BATCH):
            rows = list(_encoded(batch.to_pylist(), vocabulary, limit, config, ledger))
            if rows:
                writer.write_table(_table(rows, counts))
    return {**counts, "eos": vocabulary.eos, **ledger.write()}


class Encoded(NamedTuple):
    """One row: its ids, how many of them are prompt, and which of those are learnt all the same."""

    id: str
    split: str
    ids: list[int]
    prompt_length: int
    learnt: list[int]


def _table(rows: list[Encoded], counts: dict[str, int]) -> pa.Table:
    """Rows as Arrow lists over one flat array each: no token becomes a Python object again."""
    lengths = np.array([len(row.ids) for row in rows])
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    ids = np.concatenate([np.array(row.ids, dtype=np.int32) for row in rows])
    in_row = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
    masked = in_row < np.repeat([row.prompt_length for row in rows], lengths)
    masked[[start + index for row, start in zip(rows, offsets[:-1], strict=True) for index in row.learnt]] = False
    labels = np.where(masked, np.int32(NOT_LEARNT), ids)
    for row in rows:
        counts[row.split] += 1
    counts["rows"] += len(rows)
    counts["tokens"] += len(ids)
    counts["learnt_tokens"] += int((~masked).sum())
    counts["longest"] = max(counts["longest"], int(lengths.max()))
    columns = [
        pa.array([row.id for row in rows]),
        pa.array([row.split for row in rows]),
        *(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)) for values in (ids, labels)),
    ]
    return pa.table(columns, schema=TOKEN_SCHEMA)


def _encoded(
    rows: list[dict[str, Any]], vocabulary: Vocabulary, limit: int, config: TokenizationConfig, ledger: Ledger
) -> Iterator[Encoded]:
    completions = vocabulary.encode([row["completion"] for row in rows])
    prompts = vocabulary.encode([row["prompt"] for row in rows])
    for row, prompt, answer in zip(rows, prompts, completions, strict=True):
        if not answer or answer[-1] != vocabulary.eos:
            answer = [*answer, vocabulary.eos]
        prompt = [*vocabulary.prefix, *prompt]
        excess = len(prompt) + len(answer) - limit
        if excess > 0:
            fitted = _fit(row, prompt, answer, excess, config, vocabulary)
            if fitted is None:
                length = f"{len(prompt) + len(answer):,} tokens, the limit is {limit:,}"
                ledger.lost(row["id"], row["split"], "too long", length)
                continue
            detail = f"{excess:,} of {len(prompt) + len(answer):,} tokens were taken out"
            ledger.changed(row["id"], row["split"], "shortened", detail)
            prompt, answer = fitted
        learnt = _inside(row, [(span["start"], span["end"]) for span in row["learnt"] or ()], vocabulary)
        yield Encoded(row["id"], row["split"], prompt + answer, len(prompt), learnt)


def _inside(row: dict[str, Any], spans: list[tuple[int, int]], vocabulary: Vocabulary) -> list[int]:
    """Indices of the prompt's tokens that lie wholly inside one of some spans of characters."""
    if not spans:
        return []
    offsets = vocabulary.offsets(row["prompt"])
    return [i for i, (a, b) in enumerate(offsets) if b > a and any(a >= start and b <= end for start, end in spans)]


def _fit(
    row: dict[str, Any],
    prompt: list[int],
    answer: list[int],
    excess: int,
    config: TokenizationConfig,
    vocabulary: Vocabulary,
) -> tuple[list[int], list[int]] | None:
    """Prompt and answer within the limit, or None when the strategy cannot make them fit."""
    if config.too_long == "drop":
        return None
    if config.too_long == "truncate_completion":
        keep = len(answer) - 1 - excess
        return (prompt, [*answer[:keep], vocabulary.eos]) if keep > 0 else None
    if row["input_start"] is None:
        return None
    inside = _inside(row, [(row["input_start"], row["input_end"])], vocabulary)  # nothing of the instruction goes
    if not inside:
        return None
    shorter = shorten(prompt, inside[0], inside[-1] + 1, excess, config.cut)
    return None if shorter is None else (shorter, answer)
