"""rows.parquet → prompts.parquet: the prompt that the model reads and the answer that it learns."""

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting.facts import PromptFacts
from tasks.formatting.messages import ROLES
from tasks.formatting.repeats import Repeats
from tasks.formatting.rows import UNFIT, row_format
from tasks.formatting.schema import PROMPT_SCHEMA, PROMPTS, SIGNS
from tasks.formatting.templates import names_read, render_limits
from tasks.process.pool import Result, spread
from tasks.process.progress import counted
from tasks.store.ledger import Ledger

ROW_GROUP = 2048
"""Rows of a row group, which tokenization reads at once."""


def write_prompts(
    rows: Path, tokenizer: Path, config: FormattingConfig, folder: Path, log: Callable[[str], None] = print
) -> PromptFacts:
    """Format every row; a training row that is nearly equal to a held-out one is left out.

    Args:
        rows: rows.parquet of download.
        tokenizer: the base model's folder, read for the chat template alone.
    Raises:
        UserError: the template does not fit the columns, or exceeds its limits.
    """
    ledger, repeats = Ledger("format", folder), Repeats()
    job = {"rows": str(rows), "model": str(tokenizer), "config": config.model_dump()}
    source = pq.ParquetFile(rows).metadata
    units = 2 * source.num_row_groups
    count = 0
    apart = config.style == "chat" and "transformers" not in sys.modules  # a child does without torch
    with (
        contextlib.closing(spread("tasks.formatting.rows", job, units, log, apart)) as results,
        pq.ParquetWriter(folder / PROMPTS, PROMPT_SCHEMA, compression="zstd", use_dictionary=["split"]) as writer,
    ):
        for result in counted(results, units, source.num_rows, "format", log):
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
    """A unit's rows for the file, its lines in the ledger. A unit is of one split."""
    for line in result.notes:
        ledger.add(*line)
    splits, ids, signs = (result.rows[name].to_pylist() for name in ("split", "id", SIGNS))
    kept = repeats.kept(splits[0], ids, signs, ledger) if splits else []
    prompts = result.rows.drop_columns([SIGNS])
    return prompts if all(kept) else prompts.filter(pa.array(kept))


def prompt_of(config: FormattingConfig, model: Path) -> Callable[[str], str]:
    """How a text that a person types, or a row as a JSON object, becomes a prompt as in training.

    Args:
        model: folder of the base, for its chat template.
    """
    read = names_read(config.prompt, "formatting.prompt") if config.style == "template" else set()
    format_row = row_format(config, model, read | names_read(config.completion, "formatting.completion"))
    column = {"chat": config.messages_column, "text": config.text_column}.get(config.style, config.input_column)
    if config.style == "template" and column not in read and len(read) == 1:
        (column,) = read

    def prompt(text: str) -> str:
        try:
            row = json.loads(text) if text.startswith("{") else {column: text}
        except ValueError as error:
            raise UserError(f"The row is no JSON object: {error}.") from error
        if config.style == "template" and column not in read and not text.startswith("{"):
            raise UserError(f"The prompt is made of {', '.join(sorted(read))}: give a row as a JSON object with them.")
        if config.style == "chat":
            _await_answer(row, config)
        try:
            with render_limits():
                formatted = format_row(row)
        except UNFIT as error:
            raise UserError(f"The row cannot be formatted: {error}.") from error
        return formatted.completion if config.style == "text" else formatted.prompt

    return prompt


def _await_answer(row: dict[str, Any], config: FormattingConfig) -> None:
    """Let a conversation end with an answer, as rows to learn from do: what stands before it is the prompt."""
    said = row.get(config.messages_column)
    messages = [{"role": "user", "content": said}] if isinstance(said, str) and not said.startswith("[") else said
    last = messages[-1] if isinstance(messages, list) and messages else {}
    if config.answer_column:
        row.setdefault(config.answer_column, "?")
    elif isinstance(last, dict) and ROLES.get(str(last.get("role", last.get("from"))).strip().lower()) != "assistant":
        messages = [*messages, {"role": "assistant", "content": "?"}] if isinstance(messages, list) else messages
    row[config.messages_column] = messages
