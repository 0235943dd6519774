"""A few training rows as text, with the learnt parts marked. Written with the tokens, so that showing them is cheap."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.text import Part, code, excerpt, fenced, visible
from tasks.tokenization.facts import PREVIEW

Decode = Callable[[list[int]], str]
BESIDE = 90
"""Characters of each part in a log line."""


def write_preview(folder: Path, lengths: Any, rows: Any, decode: Decode) -> None:
    """Decode the first training row, the shortest, the median and the longest from the file that training reads.

    Args:
        folder: holds tokens.parquet; preview.json is written beside it.
        lengths: tokens of each training row, an array.
        rows: number of each training row in the file, an array.
    """
    import numpy as np
    import pyarrow.parquet as pq

    from tasks.tokenization.schema import TOKENS

    picks: dict[int, str] = {}
    if len(rows):
        order, last = np.argsort(lengths, kind="stable"), len(rows) - 1
        picks[int(rows[0])] = "first"
        for place, label in ((0, "shortest"), (last // 2, "median"), (last, "longest")):
            picks[int(rows[order[place]])] = label
    preview, file = [], pq.ParquetFile(folder / TOKENS)
    for number in sorted(picks):
        row = _row_at(file, number)
        shown = {"label": picks[number], "id": row["id"], "tokens": len(row["input_ids"]), "learnt": sum(_learnt(row))}
        parts = [part for kind, text in decoded(decode, row) for part in excerpt(text, kind)]
        preview.append({**shown, "parts": parts})
    (folder / PREVIEW).write_text(json.dumps(preview, ensure_ascii=False, indent=1), encoding="utf-8")


def read_preview(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / PREVIEW).read_text(encoding="utf-8"))


def decoded(decode: Decode, row: Mapping[str, Any]) -> Iterator[Part]:
    """Stretches of masked and learnt tokens as text, special tokens included."""
    ids, learnt = row["input_ids"], _learnt(row)
    start, before = 0, ""
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learnt[end] != learnt[start]:
            # decoded from the beginning of the row, because a space may depend on the token before it
            whole = decode(ids[:end])
            alone = decode(ids[start:end])
            yield ("learnt" if learnt[start] else "masked"), whole[len(before) :] if whole.startswith(before) else alone
            start, before = end, whole


def lines(folder: Path) -> Iterator[str]:
    """The first row for a log: the end of the masked part, and the learnt part in «»."""
    for row in read_preview(folder):
        if row["label"] in ("first", "shortest"):  # the first row may be the shortest one
            shown = "".join(_beside(kind, text) for kind, text in row["parts"])
            yield f"row {visible(row['id'])} as it is learnt («»): {shown}"
            return


def markdown(folder: Path) -> Iterator[str]:
    """The rows for the Prefect UI."""
    for row in read_preview(folder):
        name, tokens, learnt = code(row["id"]), f"{row['tokens']:,} tokens", f"{row['learnt']:,} learnt"
        yield f"### {row['label'].capitalize()}: row {name}, {tokens}, {learnt}\n"
        for kind, text in row["parts"]:
            yield f"*{text}*\n" if kind == "gap" else f"{NAMES[kind]}\n\n{fenced(text)}\n"


NAMES = {"masked": "read, not learnt:", "learnt": "**learnt:**"}


def _beside(kind: str, text: str) -> str:
    """A part on one line: the end of a masked part, the beginning of a learnt part."""
    plain = visible(text.replace("\n", "⏎"), len(text))
    if kind == "learnt":
        return f"«{plain[:BESIDE]}{'…' if len(plain) > BESIDE else ''}»"
    return "…" if kind == "gap" else f"{'…' if len(plain) > BESIDE else ''}{plain[-BESIDE:]}"


def _learnt(row: Mapping[str, Any]) -> list[bool]:
    from tasks.tokenization.schema import IGNORE_INDEX

    return [label != IGNORE_INDEX for label in row["labels"]]


def _row_at(file: Any, number: int) -> dict[str, Any]:
    """A row of a Parquet file; its row group is read for it."""
    for group in range(file.num_row_groups):
        if number < (count := file.metadata.row_group(group).num_rows):
            return file.read_row_group(group).slice(number, 1).to_pylist()[0]
        number -= count
    raise IndexError(number)
