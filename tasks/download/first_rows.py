"""The columns in the first rows of a source on this machine, before a run reads all rows."""

import json
import mmap
from collections import Counter
from itertools import islice
from pathlib import Path

from tasks.config import DataConfig
from tasks.download.formats.files import read_file
from tasks.download.places import Place, check_protocol, find_files
from tasks.download.rows import check_columns

LONGEST_SEARCH = 1 << 30
"""Bytes of a file of JSON in which a column is looked for beyond the first rows."""


def columns(data: DataConfig, wanted: set[str]) -> set[str] | None:
    """Columns of the first rows, and those of `wanted` that later rows may have; None for a source elsewhere.

    Raises:
        UserError: a file is not there or not what it is called, a package for its protocol is missing, or a column
            that `data` names is not there.
    """
    elsewhere, files = False, list[Place]()
    fields = [("data.path", data.path), ("data.test_path", data.test_path)]
    for field, where in fields + [(f"data.mix {source.name}", source.path) for source in data.mix]:
        if "://" in where and not where.startswith("file://"):
            check_protocol(where, field)
            elsewhere = True
        elif where:
            files += find_files(where, field)
    if elsewhere or data.hub_id or any(source.hub_id for source in data.mix):
        return None
    named = {data.id_column, data.group_column} - {""}
    seen = set[str]()
    for place in files:
        if not (missing := wanted | named - seen):
            break
        seen |= _columns(place, missing)
    if not seen:  # no row at all, which the run reports
        return None
    check_columns(data, sorted(seen))
    return seen


def _columns(place: Place, wanted: set[str]) -> set[str]:
    """Columns of a file's first block; of `wanted` also what a later block may have."""
    formats: Counter[str] = Counter()
    blocks = list(islice(read_file(place, formats), 2))
    seen = {name for row in (blocks[0] if blocks else []) if isinstance(row, dict) for name in row}
    if len(blocks) < 2 or not any(kind.startswith("JSON") for kind in formats):  # that was all, or a table
        return seen
    return seen | {name for name in wanted - seen if _may_hold(Path(place.where), name)}


def _may_hold(file: Path, name: str) -> bool:
    """Whether an object in a JSON file may have this name. Compressed and very large files are not searched."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if len(text) > LONGEST_SEARCH or text[:2] == b"\x1f\x8b" or text[:4] == b"\x28\xb5\x2f\xfd":
            return True
        spellings = {json.dumps(name), json.dumps(name, ensure_ascii=False)}
        spellings |= {spelling.replace("/", "\\/") for spelling in spellings}  # as PHP writes it
        return any(text.find(spelling.encode()) >= 0 for spelling in spellings)
