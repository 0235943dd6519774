"""What a reader yields: blocks of rows, and their limits."""

from typing import Any

BLOCK_ROWS = 10_000
BLOCK_BYTES = 8 << 20
LONGEST_LINE = 64 << 20
"""Bytes of a line. Far above any row that can be learnt; a file without line ends does not fill the memory."""
Row = dict[str, Any]


class BadRow(str):
    """In place of a row that could not be read; the text says where and why."""


Block = list[Row | BadRow]
