"""The ledger: one line for every row that did not pass a stage unchanged, so that no row vanishes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.text import visible

LEDGER = "ledger.parquet"
LEDGER_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("stage", pa.string()),
        # lost: not handed on · changed: handed on, shortened · left out: better not handed on, and no loss ·
        # kept: handed on as it is, worth knowing
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
BATCH = 10_000
LONGEST = 500
"""Characters of a detail or an id; the rest of a longer one is left away."""


class Ledger:
    """Writes ledger.parquet while a stage works, batch by batch.

    Args:
        stage: its name.
        folder: where ledger.parquet is written.
    """

    def __init__(self, stage: str, folder: Path) -> None:
        self.stage = stage
        self.first_lost: list[str] = []
        self.counts: Counter[str] = Counter()
        self._lines: list[tuple[str, ...]] = []
        self._writer = pq.ParquetWriter(folder / LEDGER, LEDGER_SCHEMA, compression="zstd")

    def lost(self, id: str, split: str, reason: str, detail: str) -> None:
        self._add(id, split, "lost", reason, detail)
        if len(self.first_lost) < 5:
            name = f"row {visible(id, LONGEST)}: " if id else ""
            self.first_lost.append(f"{name}{reason} ({visible(detail, LONGEST)})")

    def changed(self, id: str, split: str, reason: str, detail: str) -> None:
        self._add(id, split, "changed", reason, detail)

    def left_out(self, id: str, split: str, reason: str, detail: str) -> None:
        """A row that is better not handed on, such as a copy; it does not count against the budget."""
        self._add(id, split, "left out", reason, detail)

    def kept(self, id: str, split: str, reason: str, detail: str) -> None:
        """A row that is handed on as it is, and that somebody may want to look at."""
        self._add(id, split, "kept", reason, detail)

    def write(self) -> dict[str, Any]:
        """Finish ledger.parquet and return the fields of `LedgerFacts` but rows."""
        self._flush()
        self._writer.close()
        return {
            "lost": self.counts["lost"],
            "changed": self.counts["changed"],
            "left_out": self.counts["left out"],
            "first_lost": self.first_lost,
        }

    def _add(self, id: str, split: str, verdict: str, reason: str, detail: str) -> None:
        self.counts[verdict] += 1
        self._lines.append((_text(id), split, self.stage, verdict, reason, _text(detail)))
        if len(self._lines) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._lines:
            columns = [pa.array(column, pa.string()) for column in zip(*self._lines, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=LEDGER_SCHEMA))
            self._lines.clear()


def _text(text: str) -> str:
    """What Parquet takes: half a character is written as its escape."""
    return text[:LONGEST].encode("utf-8", "backslashreplace").decode()
