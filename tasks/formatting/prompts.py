"""rows.parquet → prompts.parquet: what the model reads and what it is to answer."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting.repeats import Repeats
from tasks.formatting.schema import PROMPT_SCHEMA, PROMPTS
from tasks.formatting.templates import compile_template
from tasks.store.ledger import Ledger

BATCH = 4096


class Formatted(NamedTuple):
    """A row as the model sees it."""

    prompt: str
    completion: str  # the text to learn
    answer: str  # the same as a reader sees it, without ending or control tokens
    learnt: Sequence[tuple[int, int]] = ()  # parts of the prompt that are learnt too, in characters


Format = Callable[[dict[str, Any]], Formatted]
"""Raises ValueError with the reason when the row cannot be formatted."""


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
    format_row = _chat(tokenizer, config, columns) if config.style == "chat" else _template(config, columns)
    for name in config.references:
        if name not in columns:
            raise UserError(
                f"formatting.references: no column is called {name}; the data has {', '.join(sorted(columns))}."
            )
    ledger, repeats = Ledger("format", folder), Repeats()
    count = 0
    with pq.ParquetWriter(folder / PROMPTS, PROMPT_SCHEMA, compression="zstd") as writer:
        for side in ("test", "train"):  # held-out rows first, so that training rows can be compared with them
            for batch in source.iter_batches(BATCH):
                of_side = batch.filter(pc.equal(batch["split"], side)).to_pylist()
                prompts = list(_formatted(of_side, format_row, config, ledger, repeats))
                writer.write_table(pa.Table.from_pylist(prompts, PROMPT_SCHEMA))
                count += len(prompts)
    return {
        "rows": count,
        "special_tokens": "rendered" if config.style == "chat" else "add",
        "ending": "" if config.style == "chat" else config.ending,
        **repeats.counts,
        **ledger.write(),
    }


def _formatted(
    rows: Iterable[dict[str, Any]], format_row: Format, config: FormattingConfig, ledger: Ledger, repeats: Repeats
) -> Iterable[dict[str, Any]]:
    for row in rows:
        id, split = row.pop("_id"), row["split"]
        try:
            prompt, completion, answer, learnt = format_row(row)
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, jinja2.TemplateError) as error:
            ledger.lost(id, split, "cannot be formatted", str(error))
            continue
        if not answer.strip():
            ledger.lost(id, split, "empty answer", "the completion has no text")
            continue
        if repeats.leaks(split, prompt, completion):
            ledger.left_out(id, split, "held out", "a held-out row has the same prompt and answer")
            continue
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


ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",  # what today's chat templates call it
}
"""Who speaks in ShareGPT's `from` → role. A name outside it would go into the prompt as a role of its own."""


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as chat templates take it; ShareGPT's `from` and `value` become role and content."""
    if message.get("from") is None:  # Parquet gives every message all names, when rows of both kinds are mixed
        return {name: value for name, value in message.items() if value is not None}
    if message["from"] not in ROLES:
        raise ValueError(f"a message is from {message['from']!r}, which is none of {', '.join(ROLES)}")
    if message.get("value") is None:
        raise ValueError(f"a message from {message['from']!r} has no value")
    return {"role": ROLES[message["from"]], "content": message["value"]}


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

    def render(messages: list[dict[str, Any]], answer_next: bool = False) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next))

    def format_row(row: dict[str, Any]) -> Formatted:
        messages = [_message(message) for message in row[config.messages_column] or ()]
        if not messages or messages[-1].get("role") != "assistant":
            raise ValueError("the conversation does not end with an assistant message")
        for value in (str(value) for message in messages for value in message.values()):
            # once rendered, text like this could not be told from the template's own tokens
            if found := [token for token in special if token in value]:
                raise ValueError(f"a message contains {found[0]}, which is a token of the model and no text")
        whole, answers = render(messages), []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                before, after = render(messages[:number], answer_next=True), render(messages[: number + 1]).rstrip()
                if not (whole.startswith(before) and whole.startswith(after)):
                    raise ValueError("the chat template renders a message differently once others follow it")
                answers.append((len(before), len(after)))
        start, end = answers.pop()
        return Formatted(whole[:start], whole[start:end], str(messages[-1]["content"]), answers)

    return format_row
