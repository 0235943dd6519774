"""Every row of the source is handed on or in the ledger, in the split it always has."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tasks.config import DataConfig
from tasks.download.formats import blocks
from tasks.download.identity import rows_identity
from tasks.download.schema import columns_of
from tasks.errors import UserError
from tests.download.reading import download, splits, write_kind
from tests.tiny import make_rows, write_jsonl


def test_a_held_out_row_stays_held_out_as_the_data_grows_and_moves(tmp_path: Path) -> None:
    before = splits(download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", make_rows(100))))[0])
    grown = make_rows(200)[::-1]
    after = splits(download(tmp_path, path=str(write_jsonl(tmp_path / "b.jsonl", grown)))[0])
    assert {id: after[id] for id in before} == before
    assert 20 < sum(side == "test" for side in after.values()) < 60


def test_a_group_is_never_split(tmp_path: Path) -> None:
    rows = [{**row, "topic": f"t{n % 10}"} for n, row in enumerate(make_rows(100))]
    found, _, _ = download(
        tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)), group_column="topic", test_share=0.4
    )
    assert all(
        len({row["_split"] for row in found if row["topic"] == topic}) == 1 for topic in {r["topic"] for r in rows}
    )


def test_rows_without_an_id_are_named_by_their_content(tmp_path: Path) -> None:
    rows = [{"text": f"row {n}"} for n in range(20)]
    first = splits(download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))[0])
    again = splits(download(tmp_path, path=str(write_jsonl(tmp_path / "b.jsonl", rows[::-1])))[0])
    assert first == again
    assert len(first) == 20


@pytest.mark.parametrize(
    "files",
    [
        *("{}.jsonl", "{}-00000-of-00001.jsonl", "my_{}_v2.jsonl", "{}/part.jsonl", "NAME.jsonl"),
        *("{}/2024/05/part.jsonl", "split={}/part.jsonl", "rows_{}/part.jsonl"),
    ],
)
def test_a_source_with_splits_keeps_them(tmp_path: Path, files: str) -> None:
    folder = tmp_path / "test-2024/source"  # what the folders above are called says nothing
    for name in ("train", "test", "validation"):
        file = folder / (files.format(name) if "{}" in files else files.replace("NAME", name.upper()))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(file, [{"id": f"{name}{n}", "text": "x"} for n in range(5)])
    found, ledger, info = download(tmp_path, path=str(folder))
    assert splits(found) == {f"{name}{n}": name for name in ("train", "test") for n in range(5)}
    assert info["unused"] == 5 == info["left_out"]
    assert {(e["id"], e["verdict"], e["reason"]) for e in ledger} == {
        (f"validation{n}", "left out", "not used") for n in range(5)
    }


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("train", "validation"), r"split validation .* no held-out ones called 'test': name .* data\.test_split"),
        (("training", "testing"), r"split testing .* no held-out ones called 'test': name .* data\.test_split"),
        (("dev", "test"), r"split dev .* no train ones called 'train': name .* data\.train_split"),
    ],
)
def test_a_split_is_not_trained_on_for_want_of_the_other(tmp_path: Path, names: tuple[str], sentence: str) -> None:
    for name in names:
        write_jsonl(tmp_path / f"{name}.jsonl", make_rows(9))
    with pytest.raises(UserError, match=sentence):
        download(tmp_path, path=str(tmp_path))


def test_a_rename_that_changes_the_side_changes_the_key(tmp_path: Path) -> None:
    keys = set()
    for folders in (("train", "test"), ("test", "train"), ("x", "y")):
        for folder, rows in zip(folders, (make_rows(20), make_rows(40)[20:]), strict=True):
            (tmp_path / "-".join(folders) / folder).mkdir(parents=True)
            write_jsonl(tmp_path / "-".join(folders) / folder / "part.jsonl", rows)
        keys.add(rows_identity(DataConfig(path=str(tmp_path / "-".join(folders)))).key)
    assert len(keys) == 3


def mixed(tmp_path: Path, sizes: dict[str, int], **fields: dict[str, Any]) -> dict[str, str]:
    """The split of each row of sources called a, b, … that name their rows 0, 1, 2, …"""
    mix = []
    for name, size in sizes.items():
        rows = [{"id": n, "text": f"{name} {n}"} for n in range(size)]
        mix.append({"name": name, "path": str(write_jsonl(tmp_path / f"{name}.jsonl", rows)), **fields.get(name, {})})
    return splits(download(tmp_path, mix=mix)[0])


def test_more_rows_of_one_source_never_reshuffle_the_mix(tmp_path: Path) -> None:
    fields: dict[str, dict[str, Any]] = {"a": {"max_rows": 50}, "b": {"share": 0.5}, "c": {"repeat": 3}}
    before = mixed(tmp_path, {"a": 200, "b": 200, "c": 20}, **fields)
    count = {name: sum(id[0] == name for id in before) for name in "abc"}
    assert count["a"] == 50 and 70 < count["b"] < 130
    held_out = [id for id, side in before.items() if id[0] == "c" and side == "test"]
    assert held_out and not any("#" in id for id in held_out) and count["c"] == 3 * 20 - 2 * len(held_out)
    after = mixed(tmp_path, {"a": 400, "b": 200, "c": 20}, **fields)
    assert {id: side for id, side in after.items() if id[0] != "a"} == {
        id: side for id, side in before.items() if id[0] != "a"
    }
    kept = [id for id in before if id[0] == "a" and id in after]
    assert 10 < len(kept) < 50 and all(before[id] == after[id] for id in kept)  # those with the lowest hashes of all
    assert mixed(tmp_path, {"b": 200, "a": 400}, **fields).items() <= after.items()  # in another order, without c
    more = mixed(tmp_path, {"a": 400, "b": 200, "c": 20}, **fields | {"b": {"share": 0.6}})
    assert after.items() <= more.items()


def test_groups_copies_and_repeats_are_known_across_the_mix(tmp_path: Path) -> None:
    one = [{"id": n, "talk": f"t{n % 20}", "text": f"one {n}"} for n in range(60)]
    two = [{"id": n, "talk": f"t{n % 20}", "text": f"two {n}"} for n in range(60)] + one[:5] + [{"text": "no id"}] * 2
    mix = [
        {"name": name, "path": str(write_jsonl(tmp_path / f"{name}.jsonl", rows)), "repeat": repeat}
        for name, rows, repeat in (("one", one, 1), ("two", two, 2))
    ]
    found, ledger, info = download(tmp_path, mix=mix, group_column="talk", test_share=0.5)
    talks: dict[str, set[str]] = {}
    for row in found:
        talks.setdefault(row.get("talk"), set()).add(row["_split"])
    assert all(len(side) == 1 for side in talks.values())
    reasons = [(line["id"], line["reason"]) for line in ledger]
    assert reasons[:5] == [(f"two/{n}", "duplicate id") for n in range(5)] and reasons[5][1] == "copy"
    assert info["sources"]["two"]["read"] == 67
    assert sum(counts["train"] + counts["test"] for counts in info["sources"].values()) == len(found) == info["rows"]
    groups = pq.read_table(tmp_path / "out/rows.parquet").to_pylist()
    own = {row["id"]: row["group"] for row in groups}
    assert all(own[id] and own[id] == own[id.partition("#")[0]] for id in own if "#" in id)


def test_every_use_of_a_row_has_a_name_of_its_own(tmp_path: Path) -> None:
    rows = [{"id": id, "text": id} for n in range(20) for id in (f"r{n}", f"r{n}#2", f"r{n}#2#2")]
    path = str(write_jsonl(tmp_path / "a.jsonl", rows))
    found, ledger, _ = download(tmp_path, mix=[{"name": "a", "path": path, "repeat": 2}])
    assert len({row["_id"] for row in found}) == len(found) and ledger == []
    assert {row["text"] for row in found} == {row["id"] for row in rows}


def test_a_row_that_two_sources_have_is_a_copy(tmp_path: Path) -> None:
    rows = make_rows(20)
    mix = [
        {"name": name, "path": str(write_jsonl(tmp_path / f"{name}.jsonl", some))}
        for name, some in (("one", rows), ("two", [*rows[15:], {**rows[0], "summary": "Another."}]))
    ]
    found, ledger, _ = download(tmp_path, mix=mix)
    assert len(found) == 21
    assert {(line["reason"], line["detail"]) for line in ledger} == {
        ("copy", "a row of one has the same content in every column")
    }


def test_the_key_of_a_mix_follows_its_contents(tmp_path: Path) -> None:
    def key(**fields: Any) -> str:
        return rows_identity(DataConfig(mix=[{"name": "a", "path": str(tmp_path / "a.jsonl"), **fields}])).key  # type: ignore[list-item]

    write_jsonl(tmp_path / "a.jsonl", make_rows(9))
    first = key()
    assert len({first, key(share=0.5), key(repeat=2), key(max_rows=3)}) == 4
    write_jsonl(tmp_path / "a.jsonl", make_rows(10))
    assert key() != first


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"path": "a.jsonl", "mix": [{"name": "a", "path": "b.jsonl"}]}, "or several in data.mix"),
        ({"mix": [{"name": "a", "path": "b.jsonl"}] * 2}, "two sources called a"),
        ({"mix": [{"name": "a"}]}, "the source a needs either a path or a hub_id"),
    ],
)
def test_a_mix_that_is_wrong_is_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DataConfig(**fields)


NO_DATA = [
    *(".ipynb_checkpoints/rows-checkpoint.jsonl", "_temporary/0/part.jsonl", ".rows.jsonl", "a/_SUCCESS.json"),
    *("rows.jsonl~", "rows.tmp.jsonl", ".#rows.jsonl", "rows.jsonl.crc", "~rows.jsonl", "old.bak.jsonl", "b~.jsonl"),
]


def test_hidden_and_temporary_files_are_no_data(tmp_path: Path) -> None:
    folder = tmp_path / ".cache/source"
    for name in NO_DATA:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(folder / name, [{"id": name}])
    with pytest.raises(UserError, match="file; hidden and temporary ones are not taken"):
        download(tmp_path, path=str(folder))
    write_jsonl(folder / "rows.jsonl", make_rows(20))
    for path in (folder, folder / "**/*.jsonl"):
        assert len(download(tmp_path, path=str(path))[0]) == 20
    write_jsonl(folder / "_part.jsonl", make_rows(9))
    assert len(download(tmp_path, path=str(folder / "_*.jsonl"), test_share=0.5)[0]) == 9


def test_rows_beyond_the_most_are_listed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(100))
    found, ledger, info = download(tmp_path, path=str(file), max_train_rows=30)
    assert (info["train"], len(found) + len(ledger)) == (30, 100)
    assert {e["detail"] for e in ledger} == {"data.max_train_rows is 30"}


def test_a_split_column_decides(tmp_path: Path) -> None:
    rows = [{"id": str(n), "split": ("train", "dev", "other")[n % 3]} for n in range(9)]
    found, _, info = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)), test_split="dev")
    assert (info["train"], info["test"], info["unused"]) == (3, 3, 3)
    assert {row["_split"] for row in found} == {"train", "test"}


def test_a_split_column_of_another_kind_holds_no_side(tmp_path: Path) -> None:
    rows = [{"id": str(n), "split": ["train"]} for n in range(9)]
    with pytest.raises(UserError, match="none of the rows read is left for the train split"):
        download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))


def test_why_no_row_is_left_is_said(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(1) * 20)
    with pytest.raises(UserError, match="19 were lost, the first: row r000: duplicate id"):
        download(tmp_path, path=str(file))


def test_held_out_rows_in_a_file_of_their_own(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"id": f"a{n}", "summary": "s"} for n in range(5)])
    test = write_jsonl(tmp_path / "b.jsonl", [{"id": f"b{n}", "summary1": "s", "summary2": "t"} for n in range(5)])
    found, _, _ = download(tmp_path, path=str(train), test_path=str(test))
    assert splits(found) == {**{f"a{n}": "train" for n in range(5)}, **{f"b{n}": "test" for n in range(5)}}
    assert "summary" not in found[0] and "summary1" not in found[5]


def test_an_id_that_comes_twice_loses_the_later_row(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "data1.jsonl", make_rows(20))
    write_jsonl(tmp_path / "data2.jsonl", [*make_rows(1), {**make_rows(21)[20]}])
    found, ledger, info = download(tmp_path, path=str(one.with_name("data*.jsonl")))
    assert len(found) == 21
    assert [(e["id"], e["verdict"], e["reason"]) for e in ledger] == [("r000", "lost", "duplicate id")]
    assert info["lost"] == 1 and "r000" in info["first_lost"][0]


def test_half_a_character_costs_its_row(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(20))
    file.write_bytes(file.read_bytes() + b'{"id": "x", "topic": "\\ud800"}\n{"id": "\\ud800"}\n')
    found, ledger, info = download(tmp_path, path=str(file))
    assert len(found) == 20 == info["rows"]
    assert [(entry["id"], entry["reason"]) for entry in ledger] == [("x", "wrong value"), ("\\ud800", "wrong value")]
    assert "topic holds a lone surrogate" in ledger[0]["detail"]


def test_a_row_that_is_not_used_takes_no_name(tmp_path: Path) -> None:
    rows = [{"id": str(n % 9), "split": "dev" if n < 9 else "train" if n % 2 else "test"} for n in range(18)]
    found, _, info = download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert (len(found), info["unused"], info["lost"]) == (9, 9, 0)


MIXED: list[dict[str, Any]] = [
    {"value": 1},
    {"value": 1.0},
    {"value": "1"},
    {"value": True},
    {"value": 2**70},
    {"value": None},
    {"value": {"z": 1, "a": [1, "x", {}, []], "": None}},
    {"content": [{"type": "text", "text": "x"}]},
    {"content": "x"},
    {"late": {f"name {n}": n for n in range(6000)}},
    {"deep": json.loads("[" * 200 + "]" * 200)},
    {"small": 1e-300, "large": 1e300, "zero": -0.0},
]


@pytest.mark.parametrize("block", [3, 100])
@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_rows_keep_what_they_are(tmp_path: Path, kind: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", block)
    rows = [{"id": f"r{n}", **row} for n, row in enumerate(MIXED * 3)]
    download(tmp_path, path=str(write_kind(tmp_path / f"a.{kind}", rows)))
    stored = pq.read_table(tmp_path / "out/rows.parquet")["row"].to_pylist()
    assert repr([*map(json.loads, stored)]) == repr(rows)  # order of names and kinds of numbers as well


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_is_none_is_no_value(tmp_path: Path, number: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(20))
    last = f'{{"id": null, "text": {number}, "turns": [{{"said": {number}, "n": null}}], "n": 1.0}}\n'
    file.write_text(file.read_text() + last + '{"id": null, "text": null}\n')
    found, ledger, _ = download(tmp_path, path=str(file))
    (row,) = [row for row in found if "turns" in row]
    assert len(row["_id"]) == 16 and {k: v for k, v in row.items() if k[0] != "_"} == {
        "id": None,
        "text": None,
        "turns": [{"said": None, "n": None}],
        "n": 1.0,
    }
    assert [line["reason"] for line in ledger] == ["empty row"]


def test_a_row_that_cannot_be_stored_costs_itself(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(20))
    wrong = [{"id": "a", "\ud800": 1}, {"id": "b", "x": [{"\ud800": 1}]}]
    deep = '{"id": "c", "a": ' + "[" * 900 + "]" * 900 + "}\n"
    file.write_text(file.read_text() + "".join(json.dumps(row) + "\n" for row in wrong) + deep)
    found, ledger, _ = download(tmp_path, path=str(file))
    assert [(line["id"], line["reason"]) for line in ledger[:2]] == [("a", "wrong value"), ("b", "wrong value")]
    assert len(found) + len(ledger) == 23 and ledger[1]["detail"].startswith("column x holds a lone surrogate")


def test_a_source_that_leaves_no_held_out_row_is_one_sentence(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [{"id": n, "split": "train"} for n in range(9)])
    with pytest.raises(UserError, match="left for the test split; look at the column split"):
        download(tmp_path, path=str(file))


def test_columns_that_come_late_are_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 4)
    rows: list[dict[str, Any]] = [{"id": f"r{n}", "text": "x"} for n in range(20)]
    rows[13]["late"] = "x"
    download(tmp_path, path=str(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert columns_of(pq.ParquetFile(tmp_path / "out/rows.parquet")) == {"id", "text", "late"}


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
    assert ledger == [] and info["rows"] == 20


def test_ids_that_begin_anew_in_every_file_collide_or_are_given_up(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"data-{name}.jsonl", [{"id": n, "text": f"{name} {n}"} for n in range(20)])
    found, ledger, _ = download(tmp_path, path=str(tmp_path / "data-*.jsonl"))
    assert len(found) == 20
    assert [e["reason"] for e in ledger] == ["duplicate id"] * 20
    found, ledger, _ = download(tmp_path, path=str(tmp_path / "data-*.jsonl"), id_column="")
    assert len({row["_id"] for row in found}) == 40 and ledger == []


def test_packed_splits_are_splits(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("train", "test"):
        text = "".join(json.dumps({"id": f"{name}{n}"}) + "\n" for n in range(5))
        (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    found, _, _ = download(tmp_path, path=str(folder))
    assert splits(found) == {f"{name}{n}": name for name in ("train", "test") for n in range(5)}


@pytest.mark.parametrize("field", ["id_column", "group_column"])
def test_a_column_that_is_not_there_is_named(tmp_path: Path, field: str) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(5))
    with pytest.raises(UserError, match=f"data.{field}: no column is called topics; the data has id, dialogue"):
        download(tmp_path, path=str(file), **{field: "topics"})


def test_rows_without_a_group_are_no_group(tmp_path: Path) -> None:
    plain = [{**row, "group": None} for row in make_rows(40)]
    file = str(write_jsonl(tmp_path / "a.jsonl", plain))
    grouped = splits(download(tmp_path, path=file, group_column="group")[0])
    assert grouped == splits(download(tmp_path, path=file)[0])


@pytest.mark.parametrize("named", [True, False])
def test_of_a_row_on_both_sides_the_held_out_one_stays(tmp_path: Path, named: bool) -> None:
    rows = make_rows(20) if named else [{"text": f"row {n}"} for n in range(20)]
    train = write_jsonl(tmp_path / "a.jsonl", rows)
    test = write_jsonl(tmp_path / "b.jsonl", rows[:5])
    found, ledger, info = download(tmp_path, path=str(train), test_path=str(test))
    assert (info["test"], info["train"]) == (5, 15)
    verdict = ("lost", "duplicate id") if named else ("left out", "copy")
    assert [(e["split"], e["verdict"], e["reason"]) for e in ledger] == [("train", *verdict)] * 5
    assert len({row["_id"] for row in found}) == 20
