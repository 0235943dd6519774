"""Files that expand without bound are refused within a stated memory."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.download.formats import blocks, csv_rows
from tasks.download.formats.files import MOST_MEMORY
from tests.download.reading import download, write

PROGRAM = """
import json, sys
from pathlib import Path
from tasks.errors import UserError
from tests.download.reading import download
folder, path = sys.argv[1:]
try:
    rows, ledger, info = download(Path(folder), path=path)
    print(json.dumps([len(rows), [line["detail"] for line in ledger]]))
except UserError as error:
    print(json.dumps(str(error)))
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def read(tmp_path: Path, file: Path) -> tuple[object, int]:
    """What came of a file in a process of its own: rows and ledger, or the sentence; and the peak memory in KiB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(file)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    said, peak = done.stdout.splitlines()
    return json.loads(said), int(peak)


def parquet(file: Path) -> None:
    """Less than 1,000 bytes, and 27 GB of text."""
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1024, pa.int32()), pa.array(["a" * 26_000_000]))
    pq.write_table(pa.table({"a": text}), file, compression="brotli")
    assert file.stat().st_size < 1000


def test_a_small_file_that_expands_without_bound_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    parquet(file)
    said, peak = read(tmp_path, file)
    assert str(said).startswith(f"{file} takes more than {MOST_MEMORY >> 30} GiB of memory to read.")
    assert peak < (MOST_MEMORY >> 10) + (1 << 20)


def test_a_line_without_end_is_lost_within_bounded_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv.gz"
    with gzip.open(file, "wb", compresslevel=1) as packed:
        packed.write(b"a,b\n" + b"".join(b"%d,x\n" % n for n in range(20)))
        for _ in range(800):
            packed.write(b"y," * (1 << 19))  # 800 MiB
        packed.write(b"\n7000,z\n")
    said, peak = read(tmp_path, file)
    rows, lost = said  # type: ignore[misc]
    assert rows == 21
    assert lost == ["rows.csv.gz line 22 cannot be read as CSV: it is longer than 64 MiB"]
    assert peak < 1 << 20  # one GiB


@pytest.mark.parametrize("around", ["", '"', '"a\n'])
def test_a_long_csv_line_costs_itself_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, around: str
) -> None:
    monkeypatch.setattr(blocks, "LONGEST_LINE", 100)
    lines = ["a,b", *(f"{n},x" for n in range(20)), f"{around}{'y,' * 500}", *(f"{n},z" for n in range(100, 120))]
    rows, ledger, _ = download(tmp_path, path=write(tmp_path / "rows.csv", "\n".join(lines)))
    assert {row["a"] for row in rows} == {str(n) for n in [*range(20), *range(100, 120)]}
    assert ledger and all(csv_rows.TOO_LONG in line["detail"] for line in ledger)
    assert "line 22" in ledger[0]["detail"]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_brackets_without_end_are_one_sentence_or_a_lost_row(tmp_path: Path, name: str) -> None:
    deep = "[" * 10_000_000
    text = "\n".join(json.dumps({"a": n}) for n in range(20)) + f'\n{{"a": {deep}\n'
    file = tmp_path / name
    file.write_text(deep if name == "rows.json" else text)
    said, peak = read(tmp_path, file)
    if name == "rows.json":
        assert "is not one JSON list" in str(said)
    else:
        assert said[0] == 20 and len(said[1]) == 1  # type: ignore[index]
    assert peak < 2 << 20
