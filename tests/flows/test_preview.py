"""`qlora-flow preview`: rows as they will be learnt, and what becomes of the others, without a server."""

from pathlib import Path

import pytest

from flows.__main__ import main
from tests.tiny import make_rows, write_jsonl


def test_rows_are_shown_as_the_trainer_reads_them(
    tmp_path: Path, tiny_model: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = make_rows(40)
    rows[3]["dialogue"] *= 40
    file = write_jsonl(tmp_path / "rows.jsonl", [*rows, rows[0], {**rows[1], "id": "none", "summary": ""}])
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{path: {file}}}\nmodel: {{base: {tiny_model}}}\n")
    assert main(["preview", str(config), "--rows", "1", "--tokenization.max_length", "300"]) == 0
    out = capsys.readouterr().out
    assert out.count("── training row") == 1 == out.count("── held-out row")
    shown = out.partition("── training row")[2].partition("── held-out")[0]
    id = shown.split(":")[0].strip()
    (row,) = [row for row in rows if row["id"] == id]
    assert row["dialogue"] in shown and f"### Output:\n«{row['summary']}\n\n### End<|eot_id|>»" in shown
    assert "1 lost in download: duplicate id, such as row r000: an earlier row has id 'r000'" in out
    assert "1 lost in format: empty answer, such as row none" in out
    assert "1 changed in tokenize: shortened, such as row r003" in out
    assert not store.exists() or not [*store.glob("artifacts/*")]  # nothing is left


def test_a_field_without_a_flag_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    assert main(["preview", str(config), "--data.mix", "a"]) == 2
    assert "--data.mix: there is no flag for it; write data.mix into the configuration." in capsys.readouterr().err
    config.write_text("data: {mix: [{name: a, path: b.jsonl}, {name: c, pathh: b.jsonl}]}")
    assert main(["preview", str(config)]) == 2
    assert "data.mix: pathh of number 2 is wrong: extra inputs are not permitted." in capsys.readouterr().err
