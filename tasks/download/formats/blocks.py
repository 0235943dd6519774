"""What a reader yields, and how much at once."""

from typing import Any

BLOCK_ROWS = 10_000
BLOCK_BYTES = 8 << 20
LONGEST_LINE = 64 << 20
"""Bytes of a line: far above any row that can be learnt, so that a file without line ends does not fill the memory."""
Row = dict[str, Any]


class BadRow(str):
    """Stands in the place of a row that could not be read; the text says where and why."""


Block = list[Row | BadRow]
