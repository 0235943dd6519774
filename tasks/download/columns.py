"""rows.parquet, written while its columns and their types are still being found out.

A batch that brings a new column or a wider type begins a new file; only then are the files brought to one schema at the
end. A source whose first rows show its columns is written once.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.download.blocks import Row
from tasks.download.column_types import OWN, UNFIT, Columns, as_text, guess, widened
from tasks.download.schema import GROUP_COLUMN, ID, SPLIT
from tasks.download.text_cleaning import mended, suspicious
from tasks.errors import UserError
from tasks.store.ledger import Ledger

GROUP_ROWS, GROUP_BYTES = 10_000, 16 << 20


class GrowingTable:
    """Takes rows with ID and SPLIT; what a column cannot hold goes into the ledger and out of the counts.

    Args:
        file: rows.parquet, there after `close`.
        counts: rows on each side, corrected for the rows that are lost here.
        group_column: noted in the file for the stages to come.
    """

    def __init__(self, file: Path, ledger: Ledger, counts: dict[str, int], group_column: str = "") -> None:
        self.file, self.ledger, self.counts = file, ledger, counts
        self.schema = pa.schema([OWN[ID], OWN[SPLIT]], {GROUP_COLUMN: group_column})
        self._parts: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._thread = ThreadPoolExecutor(1)  # packs one group while the next is read
        self._packing: Future[None] | None = None

    def add(self, rows: list[Row]) -> None:
        """Write rows, or keep them until they are worth writing."""
        names = dict.fromkeys(self.schema.names)
        for row in rows:
            if not row.keys() <= names.keys():
                names.update(dict.fromkeys(row))
        for name in names.keys() - set(self.schema.names):
            if name.encode("utf-8", "replace").decode() != name:
                raise UserError(f"data: a column is called {name!a}, which is no text: half a character is missing.")
        columns = {name: [row.get(name) for row in rows] for name in names}
        guesses = {name: guess(columns, name) for name in columns}
        wider = widened(self.schema, guesses)
        if not wider.equals(self.schema):
            self._end_part()
            self.schema = wider
        fit = {name: guess for name, guess in guesses.items() if isinstance(guess, pa.Array)}
        fit = {name: array for name, array in fit.items() if array.type.equals(self.schema.field(name).type)}
        self._waiting.append(self._table(columns, fit))
        if sum(map(len, self._waiting)) >= GROUP_ROWS or sum(table.nbytes for table in self._waiting) >= GROUP_BYTES:
            self._write_group()

    def close(self) -> None:
        """Bring what was written to one schema, as `file`."""
        self._end_part()
        if len(self._parts) == 1:
            self._parts[0].rename(self.file)
            return
        with pq.ParquetWriter(self.file, self.schema, compression="zstd") as writer:
            for part in self._parts:
                source = pq.ParquetFile(part)
                for group in range(source.num_row_groups):
                    writer.write_table(self._brought(source.read_row_group(group)))
                part.unlink()

    def _brought(self, table: pa.Table) -> pa.Table:
        """A table of an earlier schema in the last one; columns that stay the same are not touched."""
        there = {name: table[name].combine_chunks() for name in table.schema.names}
        same = {name: array for name, array in there.items() if array.type.equals(self.schema.field(name).type)}
        columns = {
            name: there[name].to_pylist() if name in there else [None] * len(table)
            for name in self.schema.names
            if name in (ID, SPLIT) or name not in same
        }
        return self._table(columns, same)

    def _table(self, columns: Columns, arrays: dict[str, pa.Array]) -> pa.Table:
        """The columns as the schema has them; a row with a value that does not fit goes into the ledger.

        Args:
            columns: the values, of ID and SPLIT in any case.
            arrays: columns that have their type already.
        """
        wrong: dict[int, str] = {}
        arrays = dict(arrays)
        for name, values in columns.items():
            kind = self.schema.field(name).type
            if name not in arrays and pa.types.is_string(kind):
                values = [as_text(value) for value in values]
            try:
                arrays[name] = arrays[name] if name in arrays else pa.array(values, kind)
            except UNFIT:
                values = self._fitting(name, values, wrong)
                arrays[name] = pa.array(values, kind)
            if suspicious(arrays[name]):
                arrays[name] = pa.array(self._mended(name, values, columns, wrong), kind)
        table = pa.table([arrays[name] for name in self.schema.names], schema=self.schema)
        for row, why in sorted(wrong.items()):
            side = columns[SPLIT][row]
            self.ledger.lost(columns[ID][row], side, "wrong value", why)
            self.counts[side] -= 1
        return table.filter(pa.array([row not in wrong for row in range(len(table))])) if wrong else table

    def _fitting(self, name: str, values: list[Any], wrong: dict[int, str]) -> list[Any]:
        """The values with None where one does not fit its column; `wrong` says which rows and why."""
        fitting = list(values)
        for row, value in enumerate(values):
            try:
                pa.array([value], self.schema.field(name).type)
            except UnicodeError:
                fitting[row] = None
                wrong.setdefault(row, f"column {name} holds a lone surrogate, which is no character: {_short(value)}")
            except UNFIT:
                fitting[row] = None
                wrong.setdefault(row, f"column {name} takes {self.schema.field(name).type}, not {_short(value)}")
        return fitting

    def _mended(self, name: str, values: list[Any], columns: Columns, wrong: dict[int, str]) -> list[Any]:
        """The values without control characters; None where a text is too long."""
        values = list(values)
        for row, value in enumerate(values):
            try:
                values[row], removed = mended(value)
            except ValueError as error:
                values[row], removed = None, 0
                wrong.setdefault(row, f"column {name} {error}")
            if removed and name != ID:
                detail = f"column {name}: {removed:,} taken out"
                self.ledger.changed(columns[ID][row], columns[SPLIT][row], "control characters", detail)
        return values

    def _write_group(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        if self._writer is None:
            self._parts.append(self.file.with_name(f".rows-{len(self._parts)}"))
            self._writer = pq.ParquetWriter(self._parts[-1], self.schema, compression="zstd")
        self._packed()
        self._packing = self._thread.submit(self._writer.write_table, table)

    def _packed(self) -> None:
        if self._packing:
            self._packing.result()
            self._packing = None

    def _end_part(self) -> None:
        self._write_group()
        self._packed()
        if self._writer:
            self._writer.close()
            self._writer = None


def _short(value: Any) -> str:
    """A value for a message, without copying a large one."""
    return repr(value[:200] if isinstance(value, str) else value)
