"""rows.parquet → prompts.parquet: what the model reads and what it is to answer."""

import contextlib
from collections.abc import Iterable
from itertools import compress
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting.chat import chat_format
from tasks.formatting.formatted import Format, Formatted
from tasks.formatting.repeats import Repeats, common_part, signs
from tasks.formatting.schema import PROMPT_SCHEMA, PROMPTS
from tasks.formatting.templates import compile_template
from tasks.store.ledger import Ledger

BATCH = 4096
SAMPLE = 1000
UNFIT = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, jinja2.TemplateError)
"""What a row that does not fit its template raises."""


def write_prompts(rows: Path, tokenizer: Path, config: FormattingConfig, folder: Path) -> dict[str, Any]:
    """Format every row; a training row that is equal to a held-out one is left out.

    Args:
        rows: rows.parquet of download.
        tokenizer: the base model's folder, read for the chat template alone.
    Returns:
        counts for the manifest, and how the text is to be tokenized: `special_tokens` is `add` for a template and
        `rendered` for a chat template, which writes its own.
    Raises:
        UserError: the template does not fit the columns.
    """
    source = pq.ParquetFile(rows)
    columns = set(source.schema_arrow.names) - {"_id"}
    format_row = chat_format(tokenizer, config, columns) if config.style == "chat" else _template(config, columns)
    for name in config.references:
        if name not in columns:
            raise UserError(
                f"formatting.references: no column is called {name}; the data has {', '.join(sorted(columns))}."
            )
    ledger, repeats = Ledger("format", folder), Repeats()
    common = common_part(_sample(source, format_row))
    count = 0
    with pq.ParquetWriter(folder / PROMPTS, PROMPT_SCHEMA, compression="zstd") as writer:
        for side in ("test", "train"):  # held-out rows first, so that training rows can be compared with them
            for batch in source.iter_batches(BATCH):
                of_side = batch.filter(pc.equal(batch["split"], side)).to_pylist()
                prompts = list(_formatted(of_side, format_row, config, ledger))
                texts = [(row["prompt"], row["completion"]) for row in prompts]
                kept = repeats.kept(side, [row["id"] for row in prompts], signs(texts, common), ledger)
                prompts = list(compress(prompts, kept))
                writer.write_table(pa.Table.from_pylist(prompts, PROMPT_SCHEMA))
                count += len(prompts)
    return {
        "rows": count,
        "special_tokens": "rendered" if config.style == "chat" else "add",
        "ending": "" if config.style == "chat" else config.ending,
        **repeats.counts,
        **ledger.write(),
    }


def _sample(source: pq.ParquetFile, format_row: Format) -> list[tuple[str, str]]:
    """Prompt and answer of the first held-out rows: enough to see what all rows share."""
    found: list[tuple[str, str]] = []
    for batch in source.iter_batches(BATCH):
        for row in batch.filter(pc.equal(batch["split"], "test")).slice(0, SAMPLE - len(found)).to_pylist():
            with contextlib.suppress(*UNFIT):
                formatted = format_row(row)
                found.append((formatted.prompt, formatted.completion))
        if len(found) >= SAMPLE:
            break
    return found


def _formatted(
    rows: Iterable[dict[str, Any]], format_row: Format, config: FormattingConfig, ledger: Ledger
) -> Iterable[dict[str, Any]]:
    for row in rows:
        id, split = row.pop("_id"), row["split"]
        try:
            prompt, completion, answer, learnt, only_last = format_row(row)
        except UNFIT as error:
            ledger.lost(id, split, "cannot be formatted", str(error))
            continue
        if not answer.strip():
            ledger.lost(id, split, "empty answer", "the completion has no text")
            continue
        if only_last:
            ledger.changed(id, split, "only the last answer is learnt", only_last)
        text = row.get(config.input_column) if config.style == "template" else None
        start = prompt.find(text) if isinstance(text, str) and text and prompt.count(text) == 1 else -1
        yield {
            "id": id,
            "split": split,
            "prompt": prompt,
            "completion": completion,
            "references": _references(row, config.references) or [answer.strip()],
            "learnt": [{"start": start, "end": end} for start, end in learnt],
            "input_start": start if start >= 0 else None,
            "input_end": start + len(text) if start >= 0 and text else None,
        }


def _references(row: dict[str, Any], columns: list[str]) -> list[str]:
    values = [value for name in columns for value in (row[name] if isinstance(row[name], list) else [row[name]])]
    return [str(value) for value in values if value not in (None, "")]


def _template(config: FormattingConfig, columns: set[str]) -> Format:
    prompt = compile_template(config.prompt, "formatting.prompt", columns)
    completion = compile_template(config.completion, "formatting.completion", columns)

    def format_row(row: dict[str, Any]) -> Formatted:
        answer = completion(row)
        return Formatted(prompt(row), answer + config.ending, answer)

    return format_row
