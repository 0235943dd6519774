"""The ledger: one line for every row that a stage lost, changed or left out, so that no row disappears unseen."""

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.text import visible

LEDGER = "ledger.parquet"
LEDGER_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("stage", pa.string()),
        ("verdict", pa.string()),  # see Verdict
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
Verdict = Literal["lost", "changed", "left out", "kept"]
"""lost: not handed on, counts against data.max_lost_share. changed: handed on, not as it came. left out: not handed on
for a reason that is no loss, such as a copy. kept: handed on as it is, worth a look."""
BATCH = 10_000
LONGEST = 500
"""Characters of a detail or an id; longer ones are cut."""


class Ledger:
    """Writes ledger.parquet of a stage into its folder while the stage works, batch by batch."""

    def __init__(self, stage: str, folder: Path) -> None:
        self.stage = stage
        self.first_lost: list[str] = []
        self.counts: Counter[str] = Counter()
        self._lines: list[tuple[str, ...]] = []
        self._writer = pq.ParquetWriter(folder / LEDGER, LEDGER_SCHEMA, compression="zstd")

    def add(self, verdict: Verdict, id: str, split: str, reason: str, detail: str) -> None:
        """Add a line; the first five lost rows are also remembered in words."""
        self.counts[verdict] += 1
        if verdict == "lost" and len(self.first_lost) < 5:
            name = f"row {visible(id, LONGEST)}: " if id else ""
            self.first_lost.append(f"{name}{reason} ({visible(detail, LONGEST)})")
        self._lines.append((_text(id), split, self.stage, verdict, reason, _text(detail)))
        if len(self._lines) >= BATCH:
            self._flush()

    def write(self) -> dict[str, Any]:
        """Finish ledger.parquet and return all fields of `LedgerFacts` except rows."""
        self._flush()
        self._writer.close()
        return {
            "lost": self.counts["lost"],
            "changed": self.counts["changed"],
            "left_out": self.counts["left out"],
            "first_lost": self.first_lost,
        }

    def _flush(self) -> None:
        if self._lines:
            columns = [pa.array(column, pa.string()) for column in zip(*self._lines, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=LEDGER_SCHEMA))
            self._lines.clear()


def _text(text: str) -> str:
    """Valid UTF-8 for Parquet: a lone surrogate is written as its escape."""
    return text[:LONGEST].encode("utf-8", "backslashreplace").decode()
