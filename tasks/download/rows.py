"""Source rows → rows.parquet: every row gets an id and a side, train or test, that it keeps in every later run."""

import contextlib
import functools
import hashlib
import re
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tasks.config import DataConfig, MixedSource
from tasks.download.facts import RowsFacts
from tasks.download.formats.blocks import BadRow, Block, Row
from tasks.download.formats.files import AT_ONCE, MOST_MEMORY
from tasks.download.places import sources_of
from tasks.download.rows_file import RowsFile
from tasks.download.schema import CONTENT, ROW_SCHEMA, ROWS, columns_of
from tasks.download.sources import Reader, source_parts
from tasks.download.text_cleaning import CONTROLS, stored
from tasks.errors import UserError
from tasks.process.limits import memory_limit
from tasks.process.progress import REPORT_SECONDS
from tasks.store.ledger import Ledger

SPLIT = "split"
"""A column of the source that decides a row's side."""
EARLIER = "earlier rows"
"""What counts call those that `data.replay_share` mixed in."""
_USE = re.compile(r"#\d+\Z")  # of a row that data.mix repeats


def write_rows(
    data: DataConfig,
    folder: Path,
    most: int = 0,
    earlier: Path | None = None,
    held_out: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> RowsFacts:
    """Read the source once and write rows.parquet and ledger.parquet.

    Args:
        most: rows to read of each file or split of a Hub data set; 0: all.
        earlier: rows.parquet of another run, of which `data.replay_share` mixes some in.
        held_out: all rows are.
        log: told every few seconds how many rows were read.
    Raises:
        UserError: the source cannot be read, or leaves a side empty.
    """
    ledger = Ledger("download", folder)
    formats: Counter[str] = Counter()
    file = RowsFile(folder / ROWS)
    sort, last = _Sorter(data, ledger, file), time.monotonic()
    parts = [
        (source, side, functools.partial(_first, blocks, most) if most else blocks)
        for source, own in sources_of(data)
        for side, blocks in source_parts(own, formats)
    ]
    for mixed in data.mix:
        sort.use(mixed, [blocks for source, _, blocks in parts if source is mixed])
    # held-out parts come first: of two rows with one name it is the training row that goes
    for source, side, blocks in sorted(parts, key=lambda part: part[1] != "test"):
        for block in _bounded(blocks()):
            sort.take(block, "test" if held_out else side, source)
            if time.monotonic() - last > REPORT_SECONDS:
                last = time.monotonic()
                log(f"download: {sum(sort.counts.values()):,} rows read")
    if earlier:
        sort.replay(earlier)
    file.close(list(sort.columns))
    check_columns(data, list(sort.columns))
    counts = sort.counts
    for side, field in (("train", "data.path"), ("test", "data.test_share or data.test_path")):
        if not counts[side] and not held_out:
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
        sources=sort.sources,
        **ledger.write(),
    )


def _first(blocks: Reader, most: int) -> Iterator[Block]:
    """The first rows."""
    for block in blocks():
        yield block[:most]
        most -= len(block)
        if most <= 0:
            return


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
        self.sources: dict[str, dict[str, int]] = {}
        self._seen: set[bytes] = set()
        self._limits: dict[str, float] = {}
        self._origins: dict[bytes, str] = {}  # content of a named row of the mix → its source

    def use(self, source: MixedSource, readers: list[Reader]) -> None:
        """Find the hash below which rows of a source are used; reads the source where a number of rows is asked for."""
        self.sources[source.name] = {"read": 0, "train": 0, "test": 0}
        self._limits[source.name] = source.share
        if source.max_rows:
            rows = (row for reader in readers for block in _bounded(reader()) for row in block)
            hashes = array("d")
            for row in rows:
                with contextlib.suppress(RecursionError):
                    if not isinstance(row, BadRow):
                        hashes.append(_hash(self._name(row, source)[1]))
            lowest = np.unique(np.frombuffer(hashes) if hashes else np.zeros(0))  # copies count once
            if len(lowest) > source.max_rows:
                self._limits[source.name] = min(source.share, float(lowest[source.max_rows]))

    def _name(self, row: Row, source: MixedSource | None) -> tuple[str, bytes, bool]:
        """A row's id, its digest, and whether the source names it."""
        given = row.get(self.data.id_column)
        named = given not in (None, "")
        id = str(given) if named else _digest(CONTENT(row)).hex()[:16]
        id = f"{source.name}/{id}" if source and named else id
        return id, _digest(id), named

    def take(self, block: Block, part_side: str, source: MixedSource | None = None) -> None:
        """Args: part_side: of all rows, or empty where each row decides."""
        for row in block:
            if isinstance(row, BadRow):
                self.ledger.add("lost", "", part_side, "unreadable", row)
                continue
            try:
                self._take(row, part_side, source)
            except RecursionError:
                self.ledger.add("lost", "", part_side, "wrong value", "lists or objects are too deep in each other")

    def _take(self, row: Row, part_side: str, source: MixedSource | None) -> None:
        data = self.data
        id, digest, named = self._name(row, source)
        counts = self.sources[source.name] if source else {}
        if source:
            counts["read"] += 1
        group = row.get(data.group_column) if data.group_column else None
        group_digest = None if group in (None, "") else _digest(str(group))  # rows without a group are no group
        side = part_side
        if not side and SPLIT in row:
            self.by_column, owner = True, source or data
            side = {owner.train_split: "train", owner.test_split: "test"}.get(str(row[SPLIT]), "unused")
        elif not side:  # the hash of a group or id decides, the same for ever
            place = int.from_bytes((group_digest or digest)[:8]) / 2**64
            side = "test" if place < data.test_share else "train"
        if not row.keys() <= self.columns.keys():
            self.columns.update(dict.fromkeys(row))
        if not any(row.values()) and all(value in (None, "", [], {}) for value in row.values()):
            self.ledger.add("lost", id, side, "empty row", "no column has a value")
            return
        mark = digest[:12]
        if mark in self._seen:
            if named:
                self.ledger.add("lost", id, side, "duplicate id", f"an earlier row has {data.id_column} {id!r}")
            else:
                self.ledger.add("left out", id, side, "copy", "an earlier row has the same content in every column")
            return
        if source and named:
            other = self._origins.setdefault(_digest(CONTENT(row))[:12], source.name)
            if other != source.name:
                self.ledger.add("left out", id, side, "copy", f"a row of {other} has the same content in every column")
                return
        why = ""
        if source and _hash(digest) >= self._limits[source.name]:
            why = f"data.mix uses a share of {source.name}, and this row's hash is not in it"
        elif side == "unused":
            why = "its split is neither data.train_split nor data.test_split"
        elif side == "train" and data.max_train_rows and self.counts["train"] >= data.max_train_rows:
            why = f"data.max_train_rows is {data.max_train_rows:,}"
        if why:
            self.counts["unused"] += 1
            self.ledger.add("left out", id, "", "not used", why)
            return
        self._seen.add(mark)
        try:
            text, removed = stored(row)
        except ValueError as error:
            self.ledger.add("lost", id, side, "wrong value", str(error))
            return
        if removed:
            id = id.translate(CONTROLS)
            for name, count in removed:
                self.ledger.add("changed", id, side, "control characters", f"column {name}: {count:,} taken out")
        group_name = group_digest.hex()[:16] if group_digest else None
        times = source.repeat if source and side == "train" else 1
        if times > 1:  # the same row is never validated on and trained on
            group_name = group_name or digest.hex()[:16]
        self.counts[side] += times
        if source:
            counts[side] += times
        for n in range(times):
            self.file.add(f"{id}#{n + 1}" if n else id, side, group_name, text)

    def replay(self, earlier: Path) -> None:
        """Mix in earlier rows that the source has no more: of each side those with the lowest hashes."""
        file, share = pq.ParquetFile(earlier), self.data.replay_share
        there: dict[str, list[float]] = {"train": [], "test": []}
        for id, side in _stored(file, ["id", "split"]):
            if (hash := self._replayable(id)) is not None:
                there[side].append(hash)
        wanted = {side: round(self.counts[side] * share / (1 - share)) for side in there}
        limits = {side: ([-1.0, *sorted(hashes)])[: wanted[side] + 1][-1] for side, hashes in there.items()}
        counts = self.sources[EARLIER] = {"read": file.metadata.num_rows, "train": 0, "test": 0}
        for id, side, group, row in _stored(file, ROW_SCHEMA.names):
            if (hash := self._replayable(id)) is not None and hash <= limits[side]:
                counts[side] += 1
                self.file.add(id, side, group, row.encode())
        for side in there:
            self.counts[side] += counts[side]
        self.columns.update(dict.fromkeys(sorted(columns_of(file))))

    def _replayable(self, id: str) -> float | None:
        """The hash of an earlier row, which all uses of it share; None where the source has it."""
        digest = _digest(_USE.sub("", id))
        return None if digest[:12] in self._seen or _digest(id)[:12] in self._seen else _hash(digest)


def _stored(file: pq.ParquetFile, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of rows.parquet, a value for each column."""
    for batch in file.iter_batches(4096, columns=columns):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _hash(digest: bytes) -> float:
    """Where a row stands among all that could be, from 0 to 1: other bytes than those that decide its side."""
    return int.from_bytes(digest[8:16]) / 2**64


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
