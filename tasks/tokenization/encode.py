"""prompts.parquet → tokens.parquet: ids and labels, loss on the answer alone, end-of-sequence always learnt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    ledger = Ledger("tokenize")
    counts = {"rows": 0, "train": 0, "test": 0, "tokens": 0, "learnt_tokens": 0, "longest": 0, "limit": limit}
    with pq.ParquetWriter(folder / TOKENS, TOKEN_SCHEMA, compression="zstd") as writer:
        for batch in pq.ParquetFile(prompts).iter_batches(BATCH):
            rows = list(_encoded(batch.to_pylist(), vocabulary, limit, config, ledger))
            writer.write_table(pa.Table.from_pylist(rows, TOKEN_SCHEMA))
            for row in rows:
                counts["rows"] += 1
                counts[row["split"]] += 1
                counts["tokens"] += len(row["input_ids"])
                counts["learnt_tokens"] += sum(label != NOT_LEARNT for label in row["labels"])
                counts["longest"] = max(counts["longest"], len(row["input_ids"]))
    return {**counts, "eos": vocabulary.eos, **ledger.write(folder)}


def _encoded(
    rows: list[dict[str, Any]], vocabulary: Vocabulary, limit: int, config: TokenizationConfig, ledger: Ledger
) -> Iterator[dict[str, Any]]:
    completions = vocabulary.encode([row["completion"] for row in rows])
    prompts = vocabulary.tokenizer.encode_batch([row["prompt"] for row in rows], add_special_tokens=False)
    for row, encoded, answer in zip(rows, prompts, completions, strict=True):
        if not answer or answer[-1] != vocabulary.eos:
            answer = [*answer, vocabulary.eos]
        prompt = [*vocabulary.prefix, *encoded.ids]
        excess = len(prompt) + len(answer) - limit
        if excess > 0:
            fitted = _fit(row, encoded.offsets, prompt, answer, excess, config, vocabulary)
            if fitted is None:
                length = f"{len(prompt) + len(answer):,} tokens, the limit is {limit:,}"
                ledger.lost(row["id"], row["split"], "too long", length)
                continue
            detail = f"{excess:,} of {len(prompt) + len(answer):,} tokens were taken out"
            ledger.changed(row["id"], row["split"], "shortened", detail)
            prompt, answer = fitted
        yield {
            "id": row["id"],
            "split": row["split"],
            "input_ids": prompt + answer,
            "labels": [NOT_LEARNT] * len(prompt) + answer,
        }


def _fit(
    row: dict[str, Any],
    offsets: list[tuple[int, int]],
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
    # tokens that lie wholly inside the input column, so that nothing of the instruction goes
    inside = [i for i, (a, b) in enumerate(offsets) if a >= row["input_start"] and b <= row["input_end"] and b > a]
    if not inside:
        return None
    ahead = len(vocabulary.prefix)
    shorter = shorten(prompt, inside[0] + ahead, inside[-1] + 1 + ahead, excess, config.cut)
    return None if shorter is None else (shorter, answer)
