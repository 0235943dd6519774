"""Every row of the source is handed on or in the ledger, on the side it always has."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import DataConfig
from tasks.download import columns, formats
from tasks.download.rows import write_rows
from tasks.errors import UserError
from tests.tiny import make_rows, write_jsonl


def download(tmp_path: Path, **fields: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Rows, ledger and manifest info."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    info = write_rows(DataConfig(**fields), out)
    return pq.read_table(out / "rows.parquet").to_pylist(), pq.read_table(out / "ledger.parquet").to_pylist(), info


def sides(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["_id"]: row["split"] for row in rows}


def write(file: Path, content: str | bytes) -> str:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(file)


def write_kind(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a .jsonl, .json, .csv or .parquet file, by its name."""
    kind = file.suffix[1:]
    if kind == "jsonl":
        return write_jsonl(file, rows)
    if kind == "json":
        file.write_text(json.dumps(rows, indent=1))
        return file
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, file) if kind == "parquet" else __import__("pyarrow.csv").csv.write_csv(table, file)
    return file


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


def test_a_held_out_row_stays_held_out_as_the_data_grows_and_moves(tmp_path: Path) -> None:
    before = sides(download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", make_rows(100))))[0])
    grown = make_rows(200)[::-1]
    after = sides(download(tmp_path, path=str(write_jsonl(tmp_path / "b.jsonl", grown)))[0])
    assert {id: after[id] for id in before} == before
    assert 20 < sum(side == "test" for side in after.values()) < 60


def test_a_group_is_never_split(tmp_path: Path) -> None:
    rows = [{**row, "topic": f"t{n % 10}"} for n, row in enumerate(make_rows(100))]
    found, _, _ = download(
        tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)), group_column="topic", test_share=0.4
    )
    assert all(
        len({row["split"] for row in found if row["topic"] == topic}) == 1 for topic in {r["topic"] for r in rows}
    )


def test_rows_without_an_id_are_named_by_their_content(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}"} for n in range(20)]
    first = sides(download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))[0])
    again = sides(download(tmp_path, path=str(write_jsonl(tmp_path / "b.jsonl", rows[::-1])))[0])
    assert first == again
    assert len(first) == 20


def test_a_source_with_splits_keeps_them(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("train", "test", "validation"):
        write_jsonl(folder / f"{name}.jsonl", [{"id": f"{name}{n}", "text": "x"} for n in range(5)])
    found, ledger, info = download(tmp_path, path=str(folder))
    assert sides(found) == {f"{name}{n}": name for name in ("train", "test") for n in range(5)}
    assert info["unused"] == 5 == info["left_out"]
    assert {(e["id"], e["verdict"], e["reason"]) for e in ledger} == {
        (f"validation{n}", "left out", "not used") for n in range(5)
    }


def test_rows_beyond_the_most_are_listed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(100))
    found, ledger, info = download(tmp_path, path=str(file), max_train_rows=30)
    assert (info["train"], len(found) + len(ledger)) == (30, 100)
    assert {e["detail"] for e in ledger} == {"data.max_train_rows is 30"}


def test_a_split_column_decides(tmp_path: Path) -> None:
    rows = [{"id": str(n), "split": ("train", "dev", "other")[n % 3]} for n in range(9)]
    found, _, info = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)), test_split="dev")
    assert (info["train"], info["test"], info["unused"]) == (3, 3, 3)
    assert {row["split"] for row in found} == {"train", "test"}


def test_a_split_column_of_another_kind_holds_no_side(tmp_path: Path) -> None:
    rows = [{"id": str(n), "split": ["train"]} for n in range(9)]
    with pytest.raises(UserError, match="none of the rows read is left for the train side"):
        download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))


def test_why_no_row_is_left_is_said(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(1) * 20)
    with pytest.raises(UserError, match="19 were lost, the first: row r000: duplicate id"):
        download(tmp_path, path=str(file))


def test_held_out_rows_in_a_file_of_their_own(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"id": f"a{n}", "summary": "s"} for n in range(5)])
    test = write_jsonl(tmp_path / "b.jsonl", [{"id": f"b{n}", "summary1": "s", "summary2": "t"} for n in range(5)])
    found, _, _ = download(tmp_path, path=str(train), test_path=str(test))
    assert sides(found) == {**{f"a{n}": "train" for n in range(5)}, **{f"b{n}": "test" for n in range(5)}}
    assert found[0]["summary1"] is None


def test_an_id_that_comes_twice_loses_the_later_row(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "data1.jsonl", make_rows(20))
    write_jsonl(tmp_path / "data2.jsonl", [*make_rows(1), {**make_rows(21)[20]}])
    found, ledger, info = download(tmp_path, path=str(one.with_name("data*.jsonl")))
    assert len(found) == 21
    assert [(e["id"], e["verdict"], e["reason"]) for e in ledger] == [("r000", "lost", "duplicate id")]
    assert info["lost"] == 1 and "r000" in info["first_lost"][0]


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b'{"id": "x"', "is not JSON"),
        (b"[1, 2]", "is not an object"),
        ('{"id": "Gr\u00fc\u00dfe"}'.encode("cp1252"), "is not UTF-8"),
        (b"\x00\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_line_that_cannot_be_read_is_in_the_ledger(tmp_path: Path, line: bytes, detail: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(20))
    file.write_bytes(file.read_bytes() + line + b"\n")
    found, ledger, _ = download(tmp_path, path=str(file))
    assert len(found) == 20
    assert len(ledger) == 1
    assert detail in ledger[0]["detail"] and "line 21" in ledger[0]["detail"]


def test_half_a_character_costs_its_row(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(20))
    file.write_bytes(file.read_bytes() + b'{"id": "x", "topic": "\\ud800"}\n{"id": "\\ud800"}\n')
    found, ledger, info = download(tmp_path, path=str(file))
    assert len(found) == 20 == info["rows"]
    assert [(entry["id"], entry["reason"]) for entry in ledger] == [("x", "wrong value"), ("\\ud800", "wrong value")]
    assert "topic holds a lone surrogate" in ledger[0]["detail"]


def test_ragged_csv_lines_are_in_the_ledger(tmp_path: Path) -> None:
    text = "\ufeffid,text\n" + "".join(f"{n:03d},row\n" for n in range(20)) + "020\n021,a,b\n"
    found, ledger, _ = download(tmp_path, path=write(tmp_path / "a.csv", text))
    assert found[7]["id"] == "007"  # text stays text
    assert [e["detail"] for e in ledger] == [
        "a.csv line 22 has 1 values for 2 columns",
        "a.csv line 23 has 3 values for 2 columns",
    ]


def test_a_value_of_another_type_costs_its_row_alone(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": f"r{n}", "text": "x"} for n in range(20)]
    rows[7]["text"] = {"not": "text"}
    rows[8]["number"], rows[9]["number"] = 2**70, 1
    found, ledger, _ = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert len(found) == 18
    assert [entry["id"] for entry in ledger] == ["r7", "r8"]
    assert "text takes string" in ledger[0]["detail"] and "number takes int64" in ledger[1]["detail"]


def test_numbers_that_are_whole_or_broken_go_together(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "score": n if n % 2 else n / 3} for n in range(20)]
    found, ledger, _ = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert ledger == []
    assert found[1]["score"] == 1.0


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
        ("a.jsonl", '{"_id": 1}', "a column is called _id"),
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
        ("a.jsonl.gz", gzip.compress(b'{"id": 1}\n' * 1000)[:-20], "jsonl.gz is cut short or damaged"),
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
    monkeypatch.setattr(formats, "BLOCK_BYTES", 100)
    monkeypatch.setattr(formats, "LONGEST_LINE", 1000)
    file = write_jsonl(tmp_path / "a.jsonl", [*make_rows(20), {"id": "x" * 5000}, {"id": "last"}])
    found, ledger, _ = download(tmp_path, path=str(file))
    assert [row["id"] for row in found] == [row["id"] for row in make_rows(20)] + ["last"]
    assert "line 21 is longer than 1,000 bytes" in ledger[0]["detail"]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_rows_are_the_same_wherever_the_blocks_end(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_BYTES", 37)
    monkeypatch.setattr(formats, "BLOCK_ROWS", 3)
    rows = [{**row, "text": "你好 👋" * n} for n, row in enumerate(make_rows(30))]
    found, ledger, info = download(tmp_path, path=str(write_kind(tmp_path / f"a.{kind}", rows)))
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    assert ledger == [] and sum(info["formats"].values()) == 1


def test_columns_that_come_late_are_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BLOCK_ROWS", 4)
    rows: list[dict[str, Any]] = [{"id": f"r{n}", "score": n, "who": {"name": "Ada"}} for n in range(20)]
    rows[9]["score"], rows[13]["late"], rows[17]["who"] = 0.5, "x", {"name": "Ben", "age": 3}
    rows[2]["score"] = 2**53 + 1  # a whole number until row 9 shows the column is none
    found, ledger, info = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert len(found) == 19 == info["rows"] == info["train"] + info["test"]
    assert [(e["id"], e["reason"]) for e in ledger] == [("r2", "wrong value")]
    by_id = {row["id"]: row for row in found}
    assert (by_id["r9"]["score"], by_id["r10"]["score"]) == (0.5, 10.0)
    assert (by_id["r12"]["late"], by_id["r13"]["late"]) == (None, "x")
    assert by_id["r17"]["who"] == {"name": "Ben", "age": 3} and by_id["r16"]["who"] == {"name": "Ada", "age": None}
    assert info["columns"] == ["id", "score", "who", "late", "split"]
    assert list((tmp_path / "out").glob(".rows*")) == []


def test_an_object_without_fields_is_no_value(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "meta": {}, "calls": [{"name": "f", "arguments": {}}]} for n in range(20)]
    found, ledger, _ = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert ledger == []
    assert found[0]["meta"] is None and found[0]["calls"] == [{"name": "f", "arguments": None}]


def test_control_characters_are_taken_out_and_noted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": f"r{n}", "text": "tab\there", "turns": [{"said": "x"}]} for n in range(20)]
    rows[3]["text"], rows[5]["turns"] = "a\x00b\x01", [{"said": "\x08y"}, {"said": "\x1b[1mz"}]
    found, ledger, info = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert (found[3]["text"], found[4]["text"]) == ("ab", "tab\there")
    assert found[5]["turns"] == [{"said": "y"}, {"said": "\x1b[1mz"}]
    assert [(e["id"], e["verdict"], e["detail"]) for e in ledger] == [
        ("r3", "changed", "column text: 2 taken out"),
        ("r5", "changed", "column turns: 1 taken out"),
    ]
    assert (info["rows"], info["changed"], info["lost"]) == (20, 2, 0)


def test_rows_that_hold_nothing_are_lost_and_copies_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"row {n}", "label": 0} for n in range(20)]
    rows += [rows[0], {"text": "", "label": None}, {}]
    found, ledger, info = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert len(found) == 20
    assert [(e["verdict"], e["reason"]) for e in ledger] == [
        ("left out", "copy"),
        ("lost", "empty row"),
        ("lost", "empty row"),
    ]
    assert (info["lost"], info["left_out"]) == (2, 1)


def test_a_column_called_as_our_own_can_name_the_rows(tmp_path: Path) -> None:
    rows = [{"_id": n, "text": "x"} for n in range(20)]
    found, ledger, info = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)), id_column="_id")
    assert [row["_id"] for row in found] == [str(n) for n in range(20)]
    assert ledger == [] and info["columns"] == ["text", "split"]


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


def test_ids_that_begin_anew_in_every_file_collide_or_are_given_up(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"data-{name}.jsonl", [{"id": n, "text": f"{name} {n}"} for n in range(20)])
    found, ledger, _ = download(tmp_path, path=str(tmp_path / "data-*.jsonl"))
    assert len(found) == 20
    assert [e["reason"] for e in ledger] == ["duplicate id"] * 20
    found, ledger, _ = download(tmp_path, path=str(tmp_path / "data-*.jsonl"), id_column="")
    assert len({row["_id"] for row in found}) == 40 and ledger == []


def test_objects_of_ever_new_fields_are_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MOST_FIELDS", 50)
    rows = [{"id": f"r{n}", "arguments": {f"name{n}": n}} for n in range(60)]
    with pytest.raises(UserError, match="column arguments holds objects of more than 50 different fields"):
        download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))


@pytest.mark.parametrize("name", ["a.json", "a", "a.txt"])
def test_lines_are_recognised_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    rows = make_rows(20)
    found, _, info = download(tmp_path, path=str(write_jsonl(tmp_path / name, rows)))
    assert len(found) == 20 and info["formats"] == {"JSON lines": 1}


def test_a_list_is_recognised_in_a_file_of_lines(tmp_path: Path) -> None:
    found, _, info = download(tmp_path, path=write(tmp_path / "a.jsonl", json.dumps(make_rows(20))))
    assert len(found) == 20 and info["formats"] == {"JSON list": 1}


def test_a_json_list_that_is_not_of_objects_loses_those_items(tmp_path: Path) -> None:
    found, ledger, _ = download(tmp_path, path=write(tmp_path / "a.json", json.dumps([*make_rows(20), 7, "x"])))
    assert len(found) == 20
    assert [e["detail"] for e in ledger] == [f"a.json item {n} is not an object of columns" for n in (21, 22)]


def test_two_rows_on_a_line_are_no_row(tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in make_rows(20)) + '{"id": "x"},0,{"id": "y"}\n'
    found, ledger, _ = download(tmp_path, path=write(tmp_path / "a.jsonl", text))
    assert len(found) == 20
    assert "line 21 is not JSON: Extra data" in ledger[0]["detail"]


def test_csv_rows_that_are_not_utf8_are_in_the_ledger(tmp_path: Path) -> None:
    text = "id,text\n" + "".join(f"{n:03d},row\n" for n in range(20))
    found, ledger, _ = download(
        tmp_path, path=write(tmp_path / "a.csv", text.encode() + "020,Gr\u00fc\u00dfe\n".encode("cp1252"))
    )
    assert len(found) == 20
    assert ledger[0]["detail"] == "a.csv line 22 is not UTF-8"


def test_packed_splits_are_splits(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("train", "test"):
        text = "".join(json.dumps({"id": f"{name}{n}"}) + "\n" for n in range(5))
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    found, _, _ = download(tmp_path, path=str(folder))
    assert sides(found) == {f"{name}{n}": name for name in ("train", "test") for n in range(5)}


@pytest.mark.parametrize("text", ["שלום עולם", "你好，世界", "👩‍👩‍👧‍👦 🇺🇳", "\u202eright", "\ufeffbom"])
def test_text_of_every_kind_comes_through(tmp_path: Path, text: str) -> None:
    rows = [{"id": f"r{n}", "text": text} for n in range(10)]
    found, _, _ = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert {row["text"] for row in found} == {text}


@pytest.mark.parametrize("field", ["id_column", "group_column"])
def test_a_column_that_is_not_there_is_named(tmp_path: Path, field: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(5))
    with pytest.raises(UserError, match=f"data.{field}: no column is called topics; the data has id, dialogue"):
        download(tmp_path, path=str(file), **{field: "topics"})


def test_rows_without_a_group_are_no_group(tmp_path: Path) -> None:
    plain = [{**row, "group": None} for row in make_rows(40)]
    file = str(write_jsonl(tmp_path / "a.jsonl", plain))
    grouped = sides(download(tmp_path, path=file, group_column="group")[0])
    assert grouped == sides(download(tmp_path, path=file)[0])
