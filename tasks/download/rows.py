"""Source rows → rows.parquet: every row gets an id and a split, train or test, that it keeps in every later run."""

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
from tasks.download.schema import CONTENT, ROW_SCHEMA, ROWS, RowsFile, columns_of
from tasks.download.sources import Reader, source_parts
from tasks.download.text_cleaning import CONTROLS, stored
from tasks.errors import UserError
from tasks.process.limits import memory_limit
from tasks.process.progress import REPORT_SECONDS
from tasks.store.ledger import Ledger

SPLIT = "split"
"""A column of the source that decides a row's split."""
EARLIER = "earlier rows"
"""Name, among the sources, of the rows that `data.replay_share` mixed in."""
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
        UserError: the source cannot be read, or leaves a split empty.
    """
    formats: Counter[str] = Counter()
    rows, last = _Rows(data, folder), time.monotonic()
    parts = [
        (source, split, functools.partial(_blocks, reader, most))
        for source, own in sources_of(data)
        for split, reader in source_parts(own, formats)
    ]
    for mixed in data.mix:
        rows.use(mixed, [read for source, _, read in parts if source is mixed])
    # held-out parts come first: of two rows with one name it is the training row that goes
    for source, split, read in sorted(parts, key=lambda part: part[1] != "test"):
        for block in read():
            rows.take(block, "test" if held_out else split, source)
            if time.monotonic() - last > REPORT_SECONDS:
                last = time.monotonic()
                log(f"download: {sum(rows.counts.values()):,} rows read")
    if earlier:
        rows.replay(earlier)
    facts = rows.close(formats)
    for split, count, field in (
        ("train", facts.train, "data.path"),
        ("test", facts.test, "data.test_share or data.test_path"),
    ):
        if not count and not held_out:
            if rows.by_column:
                field = f"the column {SPLIT}, or rename it to have data.test_share decide"
            raise UserError(
                f"data: none of the rows read is left for the {split} split; look at {field}{_why(data, facts)}."
            )
    return facts


def _blocks(read: Reader, most: int) -> Iterator[Block]:
    """The blocks of a part, each read within a limit of memory: a small file may hold a thousand times its size.

    Args:
        most: rows to read; 0: all.
    """
    blocks, count = read(), 0
    while count < most or not most:
        try:
            with memory_limit(MOST_MEMORY):
                block = next(blocks, None)
        except MemoryError as error:  # of a Hub data set; a file is named by its reader
            raise UserError(
                f"data: a part of the rows takes more than {MOST_MEMORY >> 30} GiB to read. {AT_ONCE}"
            ) from error
        if block is None:
            return
        yield block[: most - count] if most else block
        count += len(block)


class _Rows:
    """Gives every row of the source its id and split, and writes it, or a line in the ledger."""

    def __init__(self, data: DataConfig, folder: Path) -> None:
        self.data, self.ledger, self.file = data, Ledger("download", folder), RowsFile(folder / ROWS)
        self.counts = {"train": 0, "test": 0, "unused": 0}
        self.columns: dict[str, None] = {}
        self.by_column = False  # whether a column `split` decided
        self.sources: dict[str, dict[str, int]] = {}
        self._seen: set[bytes] = set()
        self._limits: dict[str, float] = {}
        self._origins: dict[bytes, str] = {}  # content of a named row of the mix → its source

    def use(self, source: MixedSource, parts: list[Callable[[], Iterator[Block]]]) -> None:
        """Find the hash below which rows of a source are used; reads the source where a number of rows is asked for."""
        self.sources[source.name] = {"read": 0, "train": 0, "test": 0}
        self._limits[source.name] = source.share
        if source.max_rows:
            hashes = array("d")
            for row in (row for read in parts for block in read() for row in block):
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

    def take(self, block: Block, split: str, source: MixedSource | None) -> None:
        """Args: split: of all rows; empty: each row decides."""
        for row in block:
            try:
                if isinstance(row, BadRow):
                    self.ledger.add("lost", "", split, "unreadable", row)
                else:
                    self._take(row, split, source)
            except RecursionError:
                self.ledger.add("lost", "", split, "wrong value", "lists or objects are too deep in each other")

    def _take(self, row: Row, split: str, source: MixedSource | None) -> None:
        data, (id, digest, named) = self.data, self._name(row, source)
        mark = digest[:12]
        group = row.get(data.group_column) if data.group_column else None
        group_digest = None if group in (None, "") else _digest(str(group))  # rows without a group are no group
        if not split and SPLIT in row:
            self.by_column, owner = True, source or data
            split = {owner.train_split: "train", owner.test_split: "test"}.get(str(row[SPLIT]), "unused")
        elif not split:  # the hash of a group or id decides, the same for ever
            place = int.from_bytes((group_digest or digest)[:8]) / 2**64
            split = "test" if place < data.test_share else "train"
        if not row.keys() <= self.columns.keys():
            self.columns.update(dict.fromkeys(row))
        if source:
            self.sources[source.name]["read"] += 1
        if not any(row.values()) and all(value in (None, "", [], {}) for value in row.values()):
            return self.ledger.add("lost", id, split, "empty row", "no column has a value")
        if mark in self._seen and named:
            return self.ledger.add("lost", id, split, "duplicate id", f"an earlier row has {data.id_column} {id!r}")
        other = "an earlier row" if mark in self._seen else ""
        if source and named and not other:
            first = self._origins.setdefault(_digest(CONTENT(row))[:12], source.name)
            other = f"a row of {first}" if first != source.name else ""
        if other:
            return self.ledger.add("left out", id, split, "copy", f"{other} has the same content in every column")
        if (source or split == "unused" or data.max_train_rows) and (why := self._unused(digest, split, source)):
            self.counts["unused"] += 1
            return self.ledger.add("left out", id, "", "not used", why)
        self._seen.add(mark)
        try:
            text, removed = stored(row)
        except ValueError as error:
            return self.ledger.add("lost", id, split, "wrong value", str(error))
        if removed:
            id = id.translate(CONTROLS)
            for name, count in removed:
                self.ledger.add("changed", id, split, "control characters", f"column {name}: {count:,} taken out")
        group_name = group_digest.hex()[:16] if group_digest else None
        if not source:
            self.counts[split] += 1
            return self.file.add(id, split, group_name, text)
        times = source.repeat if split == "train" else 1
        if times > 1:  # the same row is never validated on and trained on
            group_name = group_name or digest.hex()[:16]
        self.counts[split] += times
        self.sources[source.name][split] += times
        odd = source.repeat > 1 and _USE.search(id)  # an id like that of a row's second use
        for n in range(times):
            self.file.add(f"{id}#{n + 1}" if n or odd else id, split, group_name, text)

    def _unused(self, digest: bytes, split: str, source: MixedSource | None) -> str:
        """Why a row is not used; empty: it is."""
        data = self.data
        if source and _hash(digest) >= self._limits[source.name]:
            return f"data.mix uses a share of {source.name}, and this row's hash is not in it"
        if split == "unused":
            return "its split is neither data.train_split nor data.test_split"
        full = split == "train" and data.max_train_rows and self.counts["train"] >= data.max_train_rows
        return f"data.max_train_rows is {data.max_train_rows:,}" if full else ""

    def replay(self, earlier: Path) -> None:
        """Mix in earlier rows that the source has no more: of each split those with the lowest hashes."""
        file, share = pq.ParquetFile(earlier), self.data.replay_share
        hashes: dict[str, list[float]] = {"train": [], "test": []}
        for id, split in _stored(file, ["id", "split"]):
            if (hash := self._replayable(id)) is not None:
                hashes[split].append(hash)
        wanted = {split: round(self.counts[split] * share / (1 - share)) for split in hashes}
        limits = {split: ([-1.0, *sorted(found)])[: wanted[split] + 1][-1] for split, found in hashes.items()}
        counts = self.sources[EARLIER] = {"read": file.metadata.num_rows, "train": 0, "test": 0}
        for id, split, group, row in _stored(file, ROW_SCHEMA.names):
            if (hash := self._replayable(id)) is not None and hash <= limits[split]:
                counts[split] += 1
                self.counts[split] += 1
                self.file.add(id, split, group, row.encode())
        self.columns.update(dict.fromkeys(sorted(columns_of(file))))

    def _replayable(self, id: str) -> float | None:
        """The hash of an earlier row, which all uses of it share; None where the source has it."""
        digest = _digest(_USE.sub("", id))
        return None if digest[:12] in self._seen or _digest(id)[:12] in self._seen else _hash(digest)

    def close(self, formats: dict[str, int]) -> RowsFacts:
        self.file.close(list(self.columns))
        check_columns(self.data, list(self.columns))
        counts, lines = self.counts, self.ledger.write()
        rows = counts["train"] + counts["test"]
        return RowsFacts.model_validate({"rows": rows, "formats": formats, "sources": self.sources, **counts, **lines})


def _stored(file: pq.ParquetFile, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """The rows of rows.parquet, a value for each column."""
    for batch in file.iter_batches(4096, columns=columns):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _hash(digest: bytes) -> float:
    """Where a row stands among all that could be, from 0 to 1: other bytes than those that decide its split."""
    return int.from_bytes(digest[8:16]) / 2**64


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


def check_columns(data: DataConfig, there: list[str]) -> None:
    """A column that is asked for by name is there; the default `id` may be absent."""
    optional = {"", DataConfig.model_fields["id_column"].default}
    for field, name in (("id_column", data.id_column), ("group_column", data.group_column)):
        if name not in optional and name not in there:
            raise UserError(f"data.{field}: no column is called {name}; the data has {', '.join(there)}.")


def _why(data: DataConfig, facts: RowsFacts) -> str:
    """What became of the rows instead, as far as it is known."""
    if facts.first_lost:
        return f"; {facts.lost:,} were lost, the first: {facts.first_lost[0]}"
    if facts.unused:
        return f"; {facts.unused:,} are of no split called {data.train_split!r} or {data.test_split!r}"
    return f"; {facts.left_out:,} were left out as copies of earlier rows" if facts.left_out else ""
