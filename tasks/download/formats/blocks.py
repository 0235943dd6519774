"""What a reader yields: blocks of rows, and their limits."""

from collections.abc import Iterable, Iterator
from typing import Any

BLOCK_ROWS = 10_000
BLOCK_BYTES = 8 << 20
LONGEST_LINE = 64 << 20
"""Bytes of a line. Far above any row that can be learnt; a file without line ends does not fill the memory."""
Row = dict[str, Any]


class BadRow(str):
    """In place of a row that could not be read; the text says where and why."""


Block = list[Row | BadRow]


def in_blocks(rows: Iterable[tuple[Row | BadRow, int]]) -> Iterator[Block]:
    """Rows, given with their sizes, in blocks of at most BLOCK_ROWS rows and about BLOCK_BYTES."""
    block, total = Block(), 0
    for row, size in rows:
        block.append(row)
        total += size
        if len(block) >= BLOCK_ROWS or total > BLOCK_BYTES:
            yield block
            block, total = [], 0
    if block:
        yield block
