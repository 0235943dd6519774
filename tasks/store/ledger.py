"""The ledger: one line for every row that did not pass a stage unchanged, so that no row vanishes."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

LEDGER = "ledger.parquet"
LEDGER_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("split", pa.string()),
        ("stage", pa.string()),
        # lost: not handed on · changed: handed on, shortened · left out: better not handed on, and no loss
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)


class Ledger:
    """Collects verdicts while a stage works, then writes them beside its rows."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.entries: list[dict[str, str]] = []

    def lost(self, id: str, split: str, reason: str, detail: str) -> None:
        self._add(id, split, "lost", reason, detail)

    def changed(self, id: str, split: str, reason: str, detail: str) -> None:
        self._add(id, split, "changed", reason, detail)

    def left_out(self, id: str, split: str, reason: str, detail: str) -> None:
        """A row that is better not handed on, such as a copy; it does not count against the budget."""
        self._add(id, split, "left out", reason, detail)

    def _add(self, id: str, split: str, verdict: str, reason: str, detail: str) -> None:
        id, detail = (text.encode("utf-8", "backslashreplace").decode() for text in (id, detail))
        self.entries.append(
            {
                "id": id,
                "split": split,
                "stage": self.stage,
                "verdict": verdict,
                "reason": reason,
                "detail": detail[:500],
            }
        )

    def write(self, folder: Path) -> dict[str, Any]:
        """Write ledger.parquet and return what the manifest notes: counts and the first five lost rows."""
        pq.write_table(pa.Table.from_pylist(self.entries, schema=LEDGER_SCHEMA), folder / LEDGER)
        lost = [entry for entry in self.entries if entry["verdict"] == "lost"]
        return {
            "lost": len(lost),
            "changed": sum(entry["verdict"] == "changed" for entry in self.entries),
            "first_lost": [f"row {entry['id']}: {entry['reason']} ({entry['detail']})" for entry in lost[:5]],
        }
