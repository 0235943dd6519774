"""Formats rows as prompts and answers. Every process of the pool runs this."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks.config import FormattingConfig
from tasks.download.schema import columns_of
from tasks.errors import UserError
from tasks.formatting.chat import chat_format
from tasks.formatting.columns import check_columns, columns_read
from tasks.formatting.flags import NotLearnt, check_row
from tasks.formatting.formatted import Format, Formatted
from tasks.formatting.repeats import common_part, signs
from tasks.formatting.schema import PROMPT_SCHEMA, SIGNS
from tasks.formatting.templates import Render, Runaway, compile_template, names_read, render_limits
from tasks.process.pool import Result, serve
from tasks.process.quiet import without_torch
from tasks.text import answer_text

SPLITS = ("test", "train")  # held-out rows first, so that training rows can be compared with them
SIGNED_SCHEMA = PROMPT_SCHEMA.append(pa.field(SIGNS, pa.binary()))
PROMPT, COMPLETION = (PROMPT_SCHEMA.get_field_index(name) for name in ("prompt", "completion"))
BEGIN, END = "\ue000", "\ue001"
"""Private-use characters, which no text has: marks around the input column."""
SAMPLE = 1000
BATCH = 1000
MOST_RUNAWAYS = 10
"""Rows of a unit that may exceed a template's limits; with more, the template is at fault."""
UNFIT: tuple[type[Exception], ...] = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError)
UNFIT += (MemoryError, RecursionError, jinja2.TemplateError)
"""Errors of a template that are due to the row."""


def work(job: dict[str, Any], units: Iterable[int]) -> Iterator[Result]:
    """The prompts of a row group's held-out rows, then those of its training rows.

    Args:
        job: `rows` (file), `model` (folder) and `config`.
        units: row group n of the file as n for its held-out rows and as n + row groups for its training rows.
    Yields:
        rows of SIGNED_SCHEMA; noted is a ledger line for each row that is not among them or changed:
        [verdict, id, split, reason, detail].
    Raises:
        UserError: the template does not fit the columns, or runs wild.
    """
    config = FormattingConfig(**job["config"])
    source = pq.ParquetFile(job["rows"])
    columns = columns_of(source)
    check_columns(config, columns)
    format_row = row_format(config, Path(job["model"]), columns)
    common = common_part(_sample(source, format_row))
    for unit in units:
        turn, group = divmod(unit, source.num_row_groups)
        table = source.read_row_group(group)
        rows = table.filter(pc.equal(table["split"], SPLITS[turn])).to_pylist()
        ledger: list[list[str]] = []
        with render_limits():
            formatted = list(_formatted(rows, format_row, config, ledger))
        yield Result(_signed(formatted, common), ledger)


def row_format(config: FormattingConfig, model: Path, columns: set[str]) -> Format:
    """How a row becomes a prompt and an answer.

    Args:
        model: folder of the base, read for its chat template alone.
        columns: that rows have.
    """
    if config.style == "chat":
        return chat_format(model, config)
    return _template(config, columns) if config.style == "template" else _text(config)


def _signed(formatted: list[tuple[Any, ...]], common: Any) -> pa.RecordBatch:
    if not formatted:
        return pa.RecordBatch.from_pylist([], SIGNED_SCHEMA)
    columns = list(zip(*formatted, strict=True))
    columns.append(tuple(signs([(row[PROMPT], row[COMPLETION]) for row in formatted], common)))
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SIGNED_SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SIGNED_SCHEMA)


def _sample(source: pq.ParquetFile, format_row: Format) -> list[tuple[str, str]]:
    """Prompts and answers of the first held-out rows, to find what all rows have in common."""
    found: list[tuple[str, str]] = []
    for batch in source.iter_batches(BATCH):
        with render_limits():
            held_out = batch.filter(pc.equal(batch["split"], "test")).slice(0, SAMPLE - len(found))
            for row in held_out["row"].to_pylist():
                try:
                    formatted = format_row(json.loads(row))
                except Runaway:  # a thousand of them would take hours
                    return found
                except UNFIT:
                    continue
                found.append((formatted.prompt, formatted.completion))
        if len(found) >= SAMPLE:
            break
    return found


def _template(config: FormattingConfig, columns: set[str]) -> Format:
    prompt = compile_template(config.prompt, "formatting.prompt", columns)
    completion = compile_template(config.completion, "formatting.completion", columns)
    read = config.input_column in names_read(config.prompt, "formatting.prompt")

    def format_row(row: dict[str, Any]) -> Formatted:
        answer, text = completion(row), prompt(row)
        place = _input(prompt, text, row, config.input_column) if read else None
        return Formatted(text, answer + config.ending, answer_text(answer + config.ending, config.ending), input=place)

    return format_row


def _input(render: Render, prompt: str, row: dict[str, Any], column: str) -> tuple[int, int] | None:
    """Where the text of the input column stands in the prompt, whatever filters it went through.

    Returns:
        None where it stands more than once, nowhere, or where that cannot be told.
    """
    value = row.get(column)
    if not isinstance(value, str) or not (core := value.strip()):
        return None
    for text in (value, core):
        if prompt.count(text) == 1:
            return (start := prompt.find(text)), start + len(text)
    try:
        marked = render({**row, column: value.replace(core, f"{BEGIN}{core}{END}", 1)})
    except UNFIT:
        return None
    before, _, rest = marked.partition(BEGIN)
    inside, end, after = rest.partition(END)
    return (len(before), len(before) + len(inside)) if end and before + inside + after == prompt else None


def _text(config: FormattingConfig) -> Format:
    def format_row(row: dict[str, Any]) -> Formatted:
        if not isinstance(text := row.get(config.text_column), str):
            raise ValueError(f"the column {config.text_column} has no text")
        return Formatted("", text, answer_text(text))

    return format_row


def _formatted(
    rows: list[dict[str, Any]],
    format_row: Format,
    config: FormattingConfig,
    ledger: list[list[str]],
) -> Iterator[tuple[Any, ...]]:
    """Values in the order of PROMPT_SCHEMA."""
    runaways, read = 0, columns_read(config)
    for stored in rows:
        id, split = stored["id"], stored["split"]
        ignored: list[str] = []
        try:
            row = json.loads(stored["row"])
            check_row(row, read, ignored)
            if ignored and config.dropped == "refuse":
                raise ValueError(f"{'; '.join(ignored)}. formatting.dropped: allow ignores it")
            prompt, completion, answer, learnt, notes, place = format_row(row)
        except NotLearnt as error:
            ledger.append(["left out", id, split, "not to be learnt", str(error)])
            continue
        except UNFIT as error:
            ledger.append(["lost", id, split, "cannot be formatted", str(error) or type(error).__name__])
            runaways += isinstance(error, Runaway)
            if runaways > MOST_RUNAWAYS:
                raise UserError(
                    f"{error}, and so with {MOST_RUNAWAYS} rows before row {id}; give it shorter loops."
                ) from error
            continue
        if not answer:
            ledger.append(["lost", id, split, "empty answer", "the completion has no text"])
            continue
        if notes := [*(("flag ignored", flag) for flag in ignored), *notes]:
            ledger.append(["changed", id, split, notes[0][0], "; ".join(detail for _, detail in notes)])
        yield (
            id,
            split,
            stored["group"],
            prompt,
            completion,
            _references(row, config.references) or [answer],
            [{"start": start, "end": end} for start, end in learnt],
            *(place or (None, None)),
        )


def _references(row: dict[str, Any], columns: list[str]) -> list[str]:
    given = [row.get(name) for name in columns]
    values = [value for part in given for value in (part if isinstance(part, list) else [part])]
    if any(isinstance(value, dict | list) for value in values):
        raise ValueError(f"a reference in {', '.join(columns)} is no text")
    return [str(value) for value in values if value not in (None, "")]


if __name__ == "__main__":
    without_torch()
    serve(work)
