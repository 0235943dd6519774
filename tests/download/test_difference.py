"""Two downloads are compared by id and content, whatever columns came new to the table."""

import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tasks.config import DataConfig
from tasks.download.difference import write_difference
from tasks.download.rows import write_rows
from tests.tiny import write_jsonl


def difference(tmp_path: Path, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> tuple[dict, dict]:
    """Ids by what happened to them, and the manifest info."""
    for name, rows in (("before", before), ("now", now)):
        (tmp_path / name).mkdir()
        write_rows(DataConfig(path=str(write_jsonl(tmp_path / f"{name}.jsonl", rows))), tmp_path / name)
    info = write_difference(tmp_path / "before", tmp_path / "now", tmp_path).model_dump()
    found: dict[str, set[str]] = {"added": set(), "removed": set(), "changed": set()}
    for line in pq.read_table(tmp_path / "difference.parquet").to_pylist():
        found[line["what"]].add(line["id"])
    return found, info


def test_every_change_is_found(tmp_path: Path) -> None:
    before = [{"id": f"r{n}", "text": f"text {n}", "turns": [{"said": n}]} for n in range(9000)]
    shuffled = random.Random(0).sample(before, len(before))
    removed, kept = shuffled[:10], shuffled[10:]
    changed = [{**row, "turns": [{"said": -1}]} for row in kept[:20]]
    added = [{"id": f"new{n}", "text": "text 1", "turns": []} for n in range(5)]
    found, info = difference(tmp_path, before, [*changed, *kept[20:], *added])
    assert found == {
        "added": {row["id"] for row in added},
        "removed": {row["id"] for row in removed},
        "changed": {row["id"] for row in changed},
    }
    assert info == {"rows": 35, "added": 5, "removed": 10, "changed": 20, "same": 8970}


def test_a_new_column_changes_only_rows_that_have_it(tmp_path: Path) -> None:
    before = [{"id": f"r{n}", "who": {"name": "Ada"}} for n in range(40)]
    now = [*before[:39], {"id": "r39", "who": {"name": "Ada", "age": 3}, "note": "x"}]
    found, info = difference(tmp_path, before, now)
    assert found == {"added": set(), "removed": set(), "changed": {"r39"}}
    assert info["same"] == 39


def test_rows_named_by_their_content_are_removed_and_added(tmp_path: Path) -> None:
    before = [{"text": f"text {n}"} for n in range(40)]
    found, info = difference(tmp_path, before, [*before[1:], {"text": "new"}])
    assert {what: len(ids) for what, ids in found.items()} == {"added": 1, "removed": 1, "changed": 0}
    assert info["same"] == 39
