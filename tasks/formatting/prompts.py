"""rows.parquet → prompts.parquet: what the model reads and what it is to answer."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting.schema import PROMPT_SCHEMA, PROMPTS
from tasks.formatting.templates import compile_template
from tasks.store.ledger import Ledger

BATCH = 4096

Format = Callable[[dict[str, Any]], tuple[str, str]]
"""Row → (prompt, completion). Raises ValueError with the reason when the row cannot be formatted."""


def write_prompts(rows: Path, tokenizer: Path, config: FormattingConfig, folder: Path) -> dict[str, Any]:
    """Format every row.

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
    format_row = _chat(tokenizer, config, columns) if config.style == "chat" else _template(config, columns)
    for name in config.references:
        if name not in columns:
            raise UserError(
                f"formatting.references: no column is called {name}; the data has {', '.join(sorted(columns))}."
            )
    ledger = Ledger("format")
    count = 0
    with pq.ParquetWriter(folder / PROMPTS, PROMPT_SCHEMA, compression="zstd") as writer:
        for batch in source.iter_batches(BATCH):
            prompts = list(_formatted(batch.to_pylist(), format_row, config, ledger))
            writer.write_table(pa.Table.from_pylist(prompts, PROMPT_SCHEMA))
            count += len(prompts)
    return {
        "rows": count,
        "special_tokens": "rendered" if config.style == "chat" else "add",
        "ending": "" if config.style == "chat" else config.ending,
        **ledger.write(folder),
    }


def _formatted(
    rows: Iterable[dict[str, Any]], format_row: Format, config: FormattingConfig, ledger: Ledger
) -> Iterable[dict[str, Any]]:
    for row in rows:
        id, split = row.pop("_id"), row["split"]
        try:
            prompt, completion = format_row(row)
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, jinja2.TemplateError) as error:
            ledger.lost(id, split, "cannot be formatted", str(error))
            continue
        if not completion.strip():
            ledger.lost(id, split, "empty answer", "the completion has no text")
            continue
        text = row.get(config.input_column)
        start = prompt.find(text) if isinstance(text, str) and text and prompt.count(text) == 1 else -1
        yield {
            "id": id,
            "split": split,
            "prompt": prompt,
            "completion": completion + (config.ending if config.style == "template" else ""),
            "references": _references(row, config.references) or [completion.strip()],
            "input_start": start if start >= 0 else None,
            "input_end": start + len(text) if start >= 0 and text else None,
        }


def _references(row: dict[str, Any], columns: list[str]) -> list[str]:
    values = [value for name in columns for value in (row[name] if isinstance(row[name], list) else [row[name]])]
    return [str(value) for value in values if value not in (None, "")]


def _template(config: FormattingConfig, columns: set[str]) -> Format:
    prompt = compile_template(config.prompt, "formatting.prompt", columns)
    completion = compile_template(config.completion, "formatting.completion", columns)
    return lambda row: (prompt(row), completion(row))


def _chat(folder: Path, config: FormattingConfig, columns: set[str]) -> Format:
    """The model's own template, rendered once as text: it writes every special token itself."""
    from transformers import AutoTokenizer

    if config.messages_column not in columns:
        raise UserError(
            f"formatting.messages_column: no column is called {config.messages_column}; "
            f"the data has {', '.join(sorted(columns))}."
        )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if not tokenizer.chat_template:
        raise UserError(f"formatting.style: the model in {folder} has no chat template; use style: template.")

    special = list(tokenizer.get_added_vocab())

    def format_row(row: dict[str, Any]) -> tuple[str, str]:
        messages = row[config.messages_column]
        if not messages or messages[-1].get("role") != "assistant":
            raise ValueError("the conversation does not end with an assistant message")
        for message in messages:  # once rendered, text like this could not be told from the template's own tokens
            if found := [token for token in special if token in str(message.get("content"))]:
                raise ValueError(f"a message contains {found[0]}, which is a token of the model and no text")
        prompt = str(tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(messages, tokenize=False))
        if not whole.startswith(prompt):
            raise ValueError("the chat template renders the conversation differently with its last answer")
        return prompt, whole[len(prompt) :].rstrip()

    return format_row
