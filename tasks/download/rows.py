"""Source rows → rows.parquet: every row gets an id and a side, train or test, that it keeps in every later run."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tasks.config import DataConfig
from tasks.download.blocks import BadRow, Block, Row
from tasks.download.facts import RowsFacts
from tasks.download.formats import AT_ONCE, MOST_MEMORY
from tasks.download.rows_file import RowsFile
from tasks.download.schema import CONTENT, ROWS
from tasks.download.sources import source_parts
from tasks.download.text_cleaning import CONTROLS, stored
from tasks.errors import UserError
from tasks.process.limits import memory_limit
from tasks.store.ledger import Ledger

SPLIT = "split"
"""A column of the source that decides a row's side."""


def write_rows(data: DataConfig, folder: Path) -> RowsFacts:
    """Read the source once and write rows.parquet and ledger.parquet.

    Raises:
        UserError: the source cannot be read, or leaves a side empty.
    """
    ledger = Ledger("download", folder)
    formats: Counter[str] = Counter()
    file = RowsFile(folder / ROWS)
    sort = _Sorter(data, ledger, file)
    for side, blocks in source_parts(data, formats):
        for block in _bounded(blocks()):
            sort.take(block, side)
    file.close(list(sort.columns))
    check_columns(data, list(sort.columns))
    counts = sort.counts
    for side, field in (("train", "data.path"), ("test", "data.test_share or data.test_path")):
        if not counts[side]:
            if sort.by_column:
                field = f"the column {SPLIT}, or rename it to have data.test_share decide"
            raise UserError(
                f"data: none of the rows read is left for the {side} side; look at {field}{_why(data, ledger, counts)}."
            )
    return RowsFacts(
        rows=counts["train"] + counts["test"],
        train=counts["train"],
        test=counts["test"],
        unused=counts["unused"],
        formats=dict(formats),
        **ledger.write(),
    )


def _bounded(blocks: Iterator[Block]) -> Iterator[Block]:
    """The blocks, each read within a limit of memory: a small file may hold a thousand times its size."""
    while True:
        try:
            with memory_limit(MOST_MEMORY):
                block = next(blocks, None)
        except MemoryError as error:  # of a Hub data set; a file is named by its reader
            raise UserError(
                f"data: a part of the rows takes more than {MOST_MEMORY >> 30} GiB to read. {AT_ONCE}"
            ) from error
        if block is None:
            return
        yield block


class _Sorter:
    """Gives every row of the source its id and side; what is not handed on goes into the ledger."""

    def __init__(self, data: DataConfig, ledger: Ledger, file: RowsFile) -> None:
        self.data, self.ledger, self.file = data, ledger, file
        self.counts = {"train": 0, "test": 0, "unused": 0}
        self.columns: dict[str, None] = {}
        self.by_column = False  # whether a column `split` decided
        self._seen: set[bytes] = set()

    def take(self, block: Block, part_side: str) -> None:
        """Args: part_side: of all rows, or empty where each row decides."""
        for row in block:
            if isinstance(row, BadRow):
                self.ledger.lost("", part_side, "unreadable", row)
                continue
            try:
                self._take(row, part_side)
            except RecursionError:
                self.ledger.lost("", part_side, "wrong value", "lists or objects are too deep in each other")

    def _take(self, row: Row, part_side: str) -> None:
        data = self.data
        given = row.get(data.id_column)
        named = given not in (None, "")
        id = str(given) if named else _digest(CONTENT(row)).hex()[:16]
        digest = _digest(id)
        group = row.get(data.group_column) if data.group_column else None
        group_digest = None if group in (None, "") else _digest(str(group))  # rows without a group are no group
        side = part_side or _side(row, group_digest or digest, data)
        self.by_column |= not part_side and SPLIT in row
        if not row.keys() <= self.columns.keys():
            self.columns.update(dict.fromkeys(row))
        if not any(row.values()) and all(value in (None, "", [], {}) for value in row.values()):
            self.ledger.lost(id, side, "empty row", "no column has a value")
            return
        mark = digest[:12]
        if mark in self._seen:
            if named:
                self.ledger.lost(id, side, "duplicate id", f"an earlier row has {data.id_column} {id!r}")
            else:
                self.ledger.left_out(id, side, "copy", "an earlier row has the same content in every column")
            return
        why = ""
        if side == "unused":
            why = "its split is neither data.train_split nor data.test_split"
        elif side == "train" and data.max_train_rows and self.counts["train"] >= data.max_train_rows:
            why = f"data.max_train_rows is {data.max_train_rows:,}"
        if why:
            self.counts["unused"] += 1
            self.ledger.left_out(id, "", "not used", why)
            return
        self._seen.add(mark)
        try:
            text, removed = stored(row)
        except ValueError as error:
            self.ledger.lost(id, side, "wrong value", str(error))
            return
        if removed:
            id = id.translate(CONTROLS)
            for name, count in removed:
                self.ledger.changed(id, side, "control characters", f"column {name}: {count:,} taken out")
        self.counts[side] += 1
        self.file.add(id, side, group_digest.hex()[:16] if group_digest else None, text)


def _side(row: Row, digest: bytes, data: DataConfig) -> str:
    """A `split` column decides; without one a hash of the group or id does, the same for ever.

    Args:
        digest: of the group or id.
    """
    if SPLIT in row:
        return {data.train_split: "train", data.test_split: "test"}.get(str(row[SPLIT]), "unused")
    return "test" if int.from_bytes(digest[:8]) / 2**64 < data.test_share else "train"


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def check_columns(data: DataConfig, there: list[str]) -> None:
    """A column that is asked for by name is there; the default `id` may be absent."""
    optional = {"", DataConfig.model_fields["id_column"].default}
    for field, name in (("id_column", data.id_column), ("group_column", data.group_column)):
        if name not in optional and name not in there:
            raise UserError(f"data.{field}: no column is called {name}; the data has {', '.join(there)}.")


def _why(data: DataConfig, ledger: Ledger, counts: dict[str, int]) -> str:
    """What became of the rows instead, as far as it is known."""
    if ledger.first_lost:
        return f"; {ledger.counts['lost']:,} were lost, the first: {ledger.first_lost[0]}"
    if counts["unused"]:
        return f"; {counts['unused']:,} are of no split called {data.train_split!r} or {data.test_split!r}"
    if ledger.counts["left out"]:
        return f"; {ledger.counts['left out']:,} were left out as copies of earlier rows"
    return ""
