"""rows.parquet → prompts.parquet: what the model reads and what it is to answer."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import FormattingConfig
from tasks.formatting.facts import PromptFacts
from tasks.formatting.repeats import Repeats
from tasks.formatting.schema import PROMPT_SCHEMA, PROMPTS, SIGNS
from tasks.process.pool import Result, spread
from tasks.store.ledger import Ledger

ROW_GROUP = 2048
"""Rows that tokenization takes at once."""


def write_prompts(
    rows: Path, tokenizer: Path, config: FormattingConfig, folder: Path, log: Callable[[str], None] = print
) -> PromptFacts:
    """Format every row; a training row that is nearly equal to a held-out one is left out.

    Args:
        rows: rows.parquet of download.
        tokenizer: the base model's folder, read for the chat template alone.
    Raises:
        UserError: the template does not fit the columns, or runs wild.
    """
    ledger, repeats = Ledger("format", folder), Repeats()
    job = {"rows": str(rows), "model": str(tokenizer), "config": config.model_dump()}
    units = 2 * pq.ParquetFile(rows).num_row_groups
    count = 0
    with (
        contextlib.closing(spread("tasks.formatting.rows", job, units, log)) as results,
        pq.ParquetWriter(folder / PROMPTS, PROMPT_SCHEMA, compression="zstd", use_dictionary=["split"]) as writer,
    ):
        for result in results:
            prompts = _without_leaks(result, ledger, repeats)
            if prompts.num_rows:
                writer.write_batch(prompts, ROW_GROUP)
            count += prompts.num_rows
    return PromptFacts(
        rows=count,
        special_tokens="rendered" if config.style == "chat" else "add",
        ending=config.ending if config.style == "template" else "",
        **repeats.totals(),
        **ledger.write(),
    )


def _without_leaks(result: Result, ledger: Ledger, repeats: Repeats) -> pa.RecordBatch:
    """A unit's rows for the file, its lines in the ledger. A unit is of one side."""
    for verdict, *line in result.notes:
        {"lost": ledger.lost, "changed": ledger.changed, "left out": ledger.left_out}[verdict](*line)
    splits, ids, signs = (result.rows[name].to_pylist() for name in ("split", "id", SIGNS))
    kept = repeats.kept(splits[0], ids, signs, ledger) if splits else []
    prompts = result.rows.drop_columns([SIGNS])
    return prompts if all(kept) else prompts.filter(pa.array(kept))
