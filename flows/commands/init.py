"""Write a configuration for a data file, after a look at its rows."""

import argparse
import json
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from flows.commands.arguments import a_path
from flows.config_file import load
from tasks.errors import UserError
from tasks.text import visible

LOOKED_AT = 1000
"""Rows that are read; more would not change the guess."""
ANSWERS = ("completion", "response", "output", "answer", "summary", "target", "highlights", "chosen", "label")
QUESTIONS = ("prompt", "question", "input", "dialogue", "article", "document", "text", "context", "query")
ANSWERING = ("assistant", "gpt")
CHARACTERS_PER_TOKEN = 3  # English has about four; other languages have fewer
FILE = """\
# Written by `qlora-flow init` after a look at {count:,} rows: {said}.
# Columns: {columns}
# Characters of a row: {whole}; of an answer: {answer}.
# Every other field with its default: qlora-flow run --help, or docs/configuration.md.
data:
  path: {path}
  # test_path: held_out.jsonl   # without it a fifth of the rows is held out

model:
  base: smollm2-135m-instruct   # the bundled example; or a folder, or owner/name of the Hub

formatting:
{formatting}

tokenization:
  max_length: 2048   # tokens; longer rows are shortened, here about {long:,} of those looked at

training:
  learning_rate: 2e-4
  epochs: 1

evaluation:
  max_new_tokens: {new_tokens}   # an estimate from the lengths of the answers

publishing:
  name: {name}
"""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("data", metavar="FILE", help="rows: .jsonl, .json, .csv, .parquet, .arrow; a folder or glob")
    command.add_argument("--output", type=a_path, metavar="FILE.yaml", help="what to write [default: named after FILE]")


def main(options: argparse.Namespace) -> int:
    """Returns 2 if the new file still needs a change, and prints which."""
    from flows.checks import check

    stem = Path(options.data.rstrip("/*")).name.partition(".")[0].lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", stem)[:64].strip("-._") or "adapter"
    output: Path = options.output or Path(f"{name}.yaml")
    text = configuration(options.data, _first_rows(options.data), name)
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}. --output takes another name.") from error
    print(f"{output} is written. Read it, then: qlora-flow plan {output}")
    try:
        check(dict(load(output, {})))
    except UserError as error:
        print(f"It still needs a change: {error}", file=sys.stderr)
        return 2
    return 0


def configuration(where: str, rows: list[dict[str, Any]], name: str) -> str:
    """The text of a configuration with the reasons for its choices.

    Raises:
        UserError: no column looks like an answer.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    chat = next((column for column in columns if any(_messages(row.get(column)) for row in rows)), None)
    if chat is not None:
        said, talks = f"conversations in the column {chat}", [_messages(row.get(chat)) for row in rows]
        lines = ["style: chat   # the model's own chat template; every answer of the assistant is learnt"]
        lines += [f"messages_column: {_quoted(chat)}"] if chat != "messages" else []
        if "chosen" in columns and not all(talk and talk[-1][0] in ANSWERING for talk in talks):
            lines.append("answer_column: chosen   # the conversation ends with a question")
        answers = [len(str(text)) for talk in talks for who, text in talk if who in ANSWERING]
        whole = [sum(len(str(text)) for _, text in talk) for talk in talks]
    else:
        said, asked, answer, lines = _templates(columns, rows)
        answers = [len(str(row.get(answer) or "")) for row in rows]
        whole = [sum(len(str(row.get(column) or "")) for column in [*asked, answer]) for row in rows]
    return FILE.format(
        count=len(rows),
        said=visible(said),
        columns=visible(", ".join(columns)),
        whole=_spread(whole),
        answer=_spread(answers),
        path=_quoted(where),
        formatting="\n".join(f"  {line}".rstrip() for line in lines),
        long=sum(length > 2048 * CHARACTERS_PER_TOKEN for length in whole),
        new_tokens=min(1024, 16 + sorted(answers or [0])[len(answers) * 95 // 100 - 1] // CHARACTERS_PER_TOKEN),
        name=_quoted(name),
    )


def _templates(columns: list[str], rows: list[dict[str, Any]]) -> tuple[str, list[str], str, list[str]]:
    """A description of the rows, the columns of the prompt, the column of the answer, and the lines of `formatting`."""
    texts = {c.lower(): c for c in reversed(columns) if any(isinstance(row.get(c), str) and row[c] for row in rows)}
    answer = next((texts[known] for known in ANSWERS if known in texts), None)
    others = [c for c in columns if c in texts.values() and c != answer and not re.search(r"(^|_)(uu)?id$", c.lower())]
    if answer is None and len(others) == 1:
        style = "style: text   # every token is learnt; there is no prompt"
        return "plain text", [], others[0], [style, f"text_column: {_quoted(others[0])}"]
    if answer is None or not others:
        raise UserError(
            f"FILE: no column is called like an answer ({', '.join(ANSWERS[:6])}) with one to ask beside it; there are "
            f"{', '.join(columns)}. Start from examples/formats, and name your columns in the templates."
        )
    if instruction := texts.get("instruction"):
        given = next((c for c in others if c.lower() in ("input", "context")), None)
        said, asked = "instructions in Alpaca's format", [instruction, *([given] if given else [])]
        template = f"### Instruction:\n{_braces(instruction)}\n\n"
        if given:
            template += f"{{% if {_variable(given)} %}}### Input:\n{_braces(given)}\n\n{{% endif %}}"
    else:
        longest = max(others, key=lambda column: sum(len(str(row.get(column) or "")) for row in rows))
        asked = [next((texts[known] for known in QUESTIONS if texts.get(known) in others), longest)]
        said, template = f"{asked[0]} is the prompt, {answer} the answer", f"{_braces(asked[0])}\n\n"
    return (
        said,
        asked,
        answer,
        [
            "prompt: |",
            *(f"  {line}" for line in f"{template}### Response:".splitlines()),
            f"completion: {_quoted(_braces(answer))}   # what is learnt",
            'ending: ""   # the end token is learnt anyway',
            f"input_column: {_quoted(asked[-1])}   # may be shortened if a row is too long",
        ],
    )


def _first_rows(where: str) -> list[dict[str, Any]]:
    from tasks.download.formats.files import read_file
    from tasks.download.places import find_files

    blocks = (block for place in find_files(where, "FILE") for block in read_file(place, Counter()))
    rows = [row for row in islice((row for block in blocks for row in block), LOOKED_AT) if isinstance(row, dict)]
    if not rows:
        raise UserError(f'FILE: {where} holds no row with columns; a row is an object such as {{"question": "…"}}.')
    return rows


def _messages(value: Any) -> list[tuple[Any, Any]]:
    """(role, text) of each message of a conversation, which may be JSON text; empty for any other value."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    messages = [message for message in value if isinstance(message, dict)] if isinstance(value, list) else []
    names = (("role", "content"), ("from", "value"))
    return [(m[who], m[text]) for m in messages for who, text in names if {who, text} <= m.keys()]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _variable(column: str) -> str:
    """A column in a template; `row[…]` for a name that is no identifier."""
    return column if column.isidentifier() else f"row[{_quoted(column)}]"


def _braces(column: str) -> str:
    return f"{{{{ {_variable(column)} }}}}"


def _spread(lengths: list[int]) -> str:
    ordered = sorted(lengths) or [0]
    shares = (ordered[(len(ordered) - 1) * share // 100] for share in (50, 95, 100))
    return "half have at most {:,}, 95 % at most {:,}, the longest {:,}".format(*shares)
