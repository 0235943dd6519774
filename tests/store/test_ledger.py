"""The ledger holds every verdict in order, however many there are, without holding them in memory."""

import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq

from tasks.store.ledger import BATCH, LEDGER, LEDGER_SCHEMA, LONGEST, Ledger


def test_an_empty_ledger_is_a_table(tmp_path: Path) -> None:
    assert Ledger("download", tmp_path).write() == {"lost": 0, "changed": 0, "left_out": 0, "first_lost": []}
    assert pq.read_table(tmp_path / LEDGER).schema.equals(LEDGER_SCHEMA)


def test_every_line_is_kept_in_order(tmp_path: Path) -> None:
    ledger = Ledger("format", tmp_path)
    for n in range(2 * BATCH + 3):
        ledger.add(("lost", "changed", "left out")[n % 3], f"r{n}", "train", "why", f"line {n}")
    info = ledger.write()
    lines = pq.read_table(tmp_path / LEDGER).to_pylist()
    assert [line["id"] for line in lines] == [f"r{n}" for n in range(2 * BATCH + 3)]
    assert lines[-1] == {
        "id": f"r{2 * BATCH + 2}",
        "split": "train",
        "stage": "format",
        "verdict": "changed",
        "reason": "why",
        "detail": f"line {2 * BATCH + 2}",
    }
    verdicts = [line["verdict"] for line in lines]
    assert (info["lost"], info["changed"], info["left_out"]) == tuple(
        verdicts.count(verdict) for verdict in ("lost", "changed", "left out")
    )
    assert info["first_lost"] == [f"row r{n}: why (line {n})" for n in (0, 3, 6, 9, 12)]


def test_text_that_is_no_text_is_escaped_and_long_text_cut(tmp_path: Path) -> None:
    ledger = Ledger("download", tmp_path)
    ledger.add("lost", "\ud800", "train", "wrong value", "x" * 10_000)
    info = ledger.write()
    (line,) = pq.read_table(tmp_path / LEDGER).to_pylist()
    assert (line["id"], line["detail"]) == ("\\ud800", "x" * LONGEST)
    assert info["first_lost"][0].startswith("row \\ud800: wrong value (xxx")


def test_a_hundred_thousand_lines_are_not_kept_in_memory(tmp_path: Path) -> None:
    ledger = Ledger("download", tmp_path)
    tracemalloc.start()
    for n in range(100_000):
        ledger.add("lost", f"row {n}", "train", "unreadable", f"rows.jsonl line {n} is not JSON: " + "x" * 200)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    ledger.write()
    assert held < 8 * 2**20
