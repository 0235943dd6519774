"""Every format gives the same rows; what cannot be read is in the ledger, or one sentence that names the file."""

import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.download.formats import blocks
from tasks.errors import UserError
from tests.download.reading import download, write, write_kind
from tests.tiny import make_rows, write_jsonl


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow", "arrow stream", "jsonl.gz", "jsonl.zst"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    rows = make_rows(30)
    file = tmp_path / f"rows.{kind.removesuffix(' stream')}"
    if kind == "jsonl.gz":
        file.write_bytes(gzip.compress(write_jsonl(tmp_path / "plain", rows).read_bytes()))
    elif kind == "jsonl.zst":
        with pa.output_stream(str(file), compression="zstd") as out:
            out.write(write_jsonl(tmp_path / "plain", rows).read_bytes())
    elif kind.startswith("arrow"):
        table = pa.Table.from_pylist(rows)
        new = pa.ipc.new_stream if "stream" in kind else pa.ipc.new_file
        with new(str(file), table.schema) as writer:
            writer.write_table(table)
    else:
        write_kind(file, rows)
    found, ledger, info = download(tmp_path, path=str(file))
    assert [{k: row[k] for k in rows[0]} for row in found] == rows
    assert ledger == []
    assert info["rows"] == 30 == info["train"] + info["test"]


CP1252 = "Gr\u00fc\u00dfe".encode("cp1252")
LOST: list[tuple[str, bytes, list[str]]] = [
    ("a.jsonl", b'{"id": "x"', ["line 21 is not JSON"]),
    ("a.jsonl", b"[1, 2]", ["line 21 is not an object"]),
    ("a.jsonl", b'{"id": "' + CP1252 + b'"}', ["line 21 is not UTF-8"]),
    ("a.jsonl", b"\x00\x00", ["line 21 is not JSON"]),
    ("a.jsonl", b"[" * 100_000, ["line 21 is not JSON"]),
    ("a.jsonl", b'{"id": "x", "a": 1, "a": 2}', ["line 21 is not JSON: an object has two values for 'a'"]),
    ("a.jsonl", b'{"id" : "x", "b" : [{"a" : 1, "a" : 1}]}', ["an object has two values for 'a'"]),
    ("a.jsonl", b'{"id": "x"},0,{"id": "y"}', ["line 21 is not JSON: Extra data"]),
    ("a.json", b'{"id": "x", "a": {"b": 1, "b": 2}}', ["a.json item 21 is not JSON: an object has two values for 'b'"]),
    ("a.json", b'7, "x"', [f"a.json item {n} is not an object of columns" for n in (21, 22)]),
    ("a.csv", b"id,text", ["a.csv line 22 repeats the line of column names"]),
    ("a.csv", b"020\n021,a,b", [f"a.csv line {n} has {m} values for 2 columns" for n, m in ((22, 1), (23, 3))]),
    ("a.csv", b"020," + CP1252, ["a.csv line 22 is not UTF-8"]),
]


@pytest.mark.parametrize(("name", "more", "details"), LOST)
def test_what_cannot_be_read_costs_itself_and_is_in_the_ledger(
    tmp_path: Path, name: str, more: bytes, details: list[str]
) -> None:
    rows = make_rows(20)
    text = {
        "a.jsonl": b"".join(json.dumps(row).encode() + b"\n" for row in rows) + more + b"\n",
        "a.json": json.dumps(rows)[:-1].encode() + b", " + more + b"]",
        "a.csv": b"\xef\xbb\xbfid, text \n" + b"".join(b"%03d,row\n" % n for n in range(20)) + more + b"\n",
    }[name]
    found, ledger, _ = download(tmp_path, path=write(tmp_path / name, text))
    assert len(found) == 20 and found[7]["id"] in ("r007", "007")  # text stays text
    assert [detail in line["detail"] for detail, line in zip(details, ledger, strict=True)] == [True] * len(details)


def test_a_map_is_an_object_and_no_name_comes_twice(tmp_path: Path) -> None:
    names = pa.array([f"r{n}" for n in range(20)])
    table = pa.table({"id": names, "map": pa.array([[("a", 1)]] * 20, pa.map_(pa.string(), pa.int64()))})
    pq.write_table(table, tmp_path / "a.parquet")
    found, ledger, _ = download(tmp_path, path=str(tmp_path / "a.parquet"))
    assert ledger == [] and found[0]["map"] == {"a": 1}
    twice = table.set_column(1, "map", pa.array([[("a", 1), ("a", 2)]] * 20, pa.map_(pa.string(), pa.int64())))
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a map has two values for one name"):
        download(tmp_path, path=str(tmp_path / "a.parquet"))
    pq.write_table(pa.table([names, names], names=["id", "id"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="two columns called 'id'"):
        download(tmp_path, path=str(tmp_path / "a.parquet"))


STRUCT = pa.struct([("z", pa.int64()), ("a", pa.float64())])
SECOND = "1970-01-01T00:00:00.000000001+00:00"
TYPED: list[tuple[pa.DataType, Any, Any]] = [
    (pa.float64(), [1.0, float("nan"), float("inf")], [1.0, None, None]),
    (pa.float32(), [0.1, float("nan"), 16777216], [0.1, None, 16777216.0]),
    (pa.uint64(), [2**64 - 1, 0, None], [2**64 - 1, 0, None]),
    (pa.decimal128(9, 2), [Decimal("1.50"), Decimal("0.00"), None], ["1.50", "0.00", None]),
    (pa.timestamp("ns", "UTC"), [0, 1, None], ["1970-01-01T00:00:00+00:00", SECOND, None]),
    (pa.date32(), [0, 1, None], ["1970-01-01", "1970-01-02", None]),
    (pa.binary(), [b"text", b"\xff\xd8", None], ["text", "/9g=", None]),
    (pa.dictionary(pa.int8(), pa.string()), ["a", "b", "a"], ["a", "b", "a"]),
    (STRUCT, [{"z": 1}, {"a": float("nan")}, {}], [{"z": 1}, {"a": None}, {}]),
    (pa.list_(pa.struct([("day", pa.date32())])), [[{"day": 0}], [{}], []], [[{"day": "1970-01-01"}], [{}], []]),
    (pa.map_(pa.int64(), pa.binary()), [[(1, b"x")], [], None], [{"1": "x"}, {}, None]),
    (pa.json_(), ['{"b": 1.0, "a": null}', "[]", None], [{"b": 1.0, "a": None}, [], None]),
]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "hub"])
def test_values_of_typed_tables_are_what_json_has_for_them(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = [pa.array(values, type) for type, values, _ in TYPED]
    table = pa.table({"id": ["a", "b", "c"], **{f"c{n}": array for n, array in enumerate(arrays)}})
    file = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(table, file)
    elif kind == "arrow":
        with pa.ipc.new_file(str(file), table.schema) as writer:
            writer.write_table(table)
    else:
        wanted = [name for name in table.column_names if name not in ("c10", "c11")]  # datasets has no such types
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset(table.select(wanted)))
        monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["train"])
    source = {"hub_id": "a/b", "hub_revision": "0" * 40} if kind == "hub" else {"path": str(file)}
    found, ledger, _ = download(tmp_path, **source, test_share=0.6)
    assert ledger == []
    for n, (type, _, expected) in enumerate(TYPED[: 10 if kind == "hub" else None]):
        assert repr([row[f"c{n}"] for row in found]) == repr(expected), type


def test_a_time_that_python_has_not_is_one_sentence(tmp_path: Path) -> None:
    pq.write_table(pa.table({"at": pa.array([2**52], pa.timestamp("ms"))}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet holds a value that cannot be read: "):
        download(tmp_path, path=str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", "may be anything"),
        ("a.json", '{"rows": [{"id": 1}]}', "begins with one object"),
        ("a.json", '{\n"id": 1}', "begins with one object"),
        ("a.json", '"text"', "is not one JSON list: it takes a list of objects"),
        ("a.json", "", "is not one JSON list"),
        ("a.json", '[{"id": 1}', "is not one JSON list: item 2"),
        ("a.json", '[{"id": 1}] 2', "something follows the list"),
        ("a.csv", "id;text\n1;x\n", "has columns between ';'"),
        ("a.csv", "id,Gr\u00fc\u00dfe\n1,x\n".encode("cp1252"), "is not UTF-8 in its first line"),
        ("a.jsonl", b"PAR1", "holds Parquet and is named like JSON lines"),
        ("a.parquet", b"id,text", "does not begin like Parquet"),
        ("a.csv", "", "starts with a line of column names"),
        ("a.csv", "id,text\n", "none of the rows read"),
        ("a.jsonl", "", "none of the rows read"),
        ("a.jsonl", "\ufeff[\n", "is not one JSON list"),
        ("a.csv", "id,a,a\n1,2,3\n", "two columns called 'a'"),
        ("a.jsonl", '{"id": 1, "split": "dev"}', "1 are of no split called 'train' or 'test'"),
        ("a.arrow", b"ARROW1 cut short", "cut short or damaged"),
        ("a.jsonl.zst", b"no zstd", "jsonl.zst is cut short or damaged"),
        ("a.parquet", b"PAR1cut short", "cannot be read as Parquet"),
        (
            "a.csv",
            "id,text\n1,Gr\u00fc\u00dfe\n".encode("cp1252"),
            "1 were lost, the first: .*a.csv line 2 is not UTF-8",
        ),
        ("a.jsonl", '{"text": "x"}\n' * 9, "8 were left out as copies"),
        ("a.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 1000, mtime=0)[:-20], "jsonl.gz is cut short or damaged"),
        ("a.csv.gz", b"id,text\n", "csv.gz is cut short or damaged"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_one_sentence(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        download(tmp_path, path=write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    for path in ("nowhere.jsonl", "none*.jsonl"):
        with pytest.raises(UserError, match=r"data.path: .* does not exist"):
            download(tmp_path, path=str(tmp_path / path))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("x")
    for name in ("data-00000-of-00001.arrow", "dataset_info.json"):
        write(tmp_path / "saved" / name, "x")
    with pytest.raises(UserError, match=r"save_to_disk; name its rows alone: .*/saved/\*\*/\*\.arrow"):
        download(tmp_path, path=str(tmp_path / "saved"))
    with pytest.raises(UserError, match=r"holds no \.jsonl"):
        download(tmp_path, path=str(tmp_path / "empty"))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_a_text_beyond_all_use_costs_its_row(tmp_path: Path, kind: str) -> None:
    rows = [*make_rows(10), make_rows(11)[10] | {"id": "big", "dialogue": "word " * 10_000_000}]
    file = write_kind(tmp_path / f"a.{kind}", rows)
    found, ledger, _ = download(tmp_path, path=str(file))
    assert len(found) == 10
    assert [(e["id"], e["verdict"], e["reason"]) for e in ledger] == [("big", "lost", "wrong value")]
    assert "column dialogue has a text of 50,000,000 characters" in ledger[0]["detail"]


def test_a_line_without_end_is_never_held_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    monkeypatch.setattr(blocks, "LONGEST_LINE", 1000)
    file = write_jsonl(tmp_path / "a.jsonl", [*make_rows(20), {"id": "x" * 5000}, {"id": "last"}])
    found, ledger, _ = download(tmp_path, path=str(file))
    assert [row["id"] for row in found] == [row["id"] for row in make_rows(20)] + ["last"]
    assert "line 21 is longer than 1,000 bytes" in ledger[0]["detail"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_rows_are_the_same_wherever_the_blocks_end(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 37)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 3)
    rows = [{**row, "text": "你好 👋" * n} for n, row in enumerate(make_rows(30))]
    found, ledger, info = download(tmp_path, path=str(write_kind(tmp_path / f"a.{kind}", rows)))
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    assert ledger == [] and sum(info["formats"].values()) == 1


def test_a_parquet_file_that_is_cut_short_is_one_sentence(tmp_path: Path) -> None:
    whole = write_kind(tmp_path / "a.parquet", make_rows(500)).read_bytes()
    for length in (len(whole) - 9, len(whole) // 2, 4):
        with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet"):
            download(tmp_path, path=write(tmp_path / "a.parquet", whole[:length]))


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path: Path, kind: str) -> None:
    file = write_kind(tmp_path / f"a.{kind}", make_rows(20))
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    found, ledger, _ = download(tmp_path, path=str(file))
    assert len(found) == 20 and next(iter(found[0])) == "id" and ledger == []


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_another_encoding_never_passes_for_text(tmp_path: Path, kind: str) -> None:
    text = write_kind(tmp_path / f"a.{kind}", make_rows(20)).read_text()
    with pytest.raises(
        UserError, match=r"21 were lost, the first: .*line 1 is not UTF-8|is not UTF-8 in its first line"
    ):
        download(tmp_path, path=write(tmp_path / f"a.{kind}", text.encode("utf-16")))


def test_a_nul_in_a_table_is_taken_out(tmp_path: Path) -> None:
    text = "id,text\n" + "".join(f"{n},row\n" for n in range(20)) + "20,a\0b\n"
    found, ledger, _ = download(tmp_path, path=write(tmp_path / "a.csv", text))
    assert found[20]["text"] == "ab"
    assert [(e["id"], e["verdict"]) for e in ledger] == [("20", "changed")]


@pytest.mark.parametrize("name", ["a.json", "a", "a.txt"])
def test_lines_are_recognised_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    rows = make_rows(20)
    found, _, info = download(tmp_path, path=str(write_jsonl(tmp_path / name, rows)))
    assert len(found) == 20 and info["formats"] == {"JSON lines": 1}


def test_a_list_is_recognised_in_a_file_of_lines(tmp_path: Path) -> None:
    found, _, info = download(tmp_path, path=write(tmp_path / "a.jsonl", json.dumps(make_rows(20))))
    assert len(found) == 20 and info["formats"] == {"JSON list": 1}


def test_a_quote_that_never_closes_ends_the_run(tmp_path: Path) -> None:
    text = "id,text\n" + "".join(f"{n},row\n" for n in range(20)) + '20,"open\n21,row\n'
    with pytest.raises(UserError, match=r"a\.csv has a quote in line 22 or later that never closes"):
        download(tmp_path, path=write(tmp_path / "a.csv", text))


def test_a_stray_quote_costs_the_lines_that_it_spans(tmp_path: Path) -> None:
    text = "id,text\n" + "".join(f"{n},row\n" for n in range(20)) + '20,"open\n21,"row"\n22,row\n'
    found, ledger, _ = download(tmp_path, path=write(tmp_path / "a.csv", text))
    assert [row["id"] for row in found[20:]] == ["22"]
    assert [line["detail"][:42] for line in ledger] == ["a.csv line 22 to 23 cannot be read as CSV:"] * 2


@pytest.mark.parametrize("text", ["שלום עולם", "你好，世界", "👩‍👩‍👧‍👦 🇺🇳", "\u202eright", "\ufeffbom"])
def test_text_of_every_kind_comes_through(tmp_path: Path, text: str) -> None:
    rows = [{"id": f"r{n}", "text": text} for n in range(10)]
    found, _, _ = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert {row["text"] for row in found} == {text}
