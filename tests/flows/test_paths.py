"""A path that no file can have is refused with one sentence, wherever a person writes it, and nothing is made of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from tasks.config import DataConfig, ModelConfig
from tests.tiny import make_rows, write_jsonl

IMPOSSIBLE = {
    "": "it is empty",
    " ": "it is empty",
    "~nosuch/x": "there is no user nosuch",
    "a\0b": "it holds NUL",
    "é" * 200: "255 in each of its names",
    "/d" * 4000: "it takes 4,095 bytes at most",
}
EMPTY_IS_A_VALUE = ("data.test_path", "training.start_from", "publishing.registry", "data.mix", "evaluation.watch")
Fields = Callable[[str], dict[str, Any]]
FIELDS: dict[str, Fields] = {
    **{
        name: lambda value, name=name: {name.split(".")[0]: {name.split(".")[1]: value}}
        for name in ("data.path", "data.test_path", "model.base", "training.start_from", "publishing.registry")
    },
    "data.mix": lambda value: {"data": {"path": "", "mix": [{"name": "a", "path": value}]}},
    "evaluation.watch": lambda value: {"evaluation": {"watch": [{"name": "a", "path": value}]}},
}
OPTIONS = [
    ["plan", "{}"],
    ["preview", "{}"],
    ["run", "config.yaml", "--summary", "{}"],
    ["plan", "config.yaml", "--store", "{}"],
    ["init", "{}"],
    ["init", "rows.jsonl", "--output", "{}"],
    ["adapters", "list", "--registry", "{}"],
    ["adapters", "show", "a", "--registry", "{}"],
    ["try", "a", "--registry", "{}"],
    ["try", "a", "--file", "{}"],
    ["serve", "--file", "{}"],
    ["deploy", "--file", "{}"],
    ["retrain-all", "{}"],
]


@pytest.fixture
def groups(tmp_path: Path, tiny_model: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """A configuration without a mistake, in a folder that stays as it is."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    rows = write_jsonl(Path("rows.jsonl"), make_rows(20))
    groups = {"data": {"path": str(rows)}, "model": {"base": str(tiny_model)}}
    Path("config.yaml").write_text(json.dumps(groups))
    return groups


@pytest.mark.parametrize("name", FIELDS)
def test_a_field_of_the_configuration(
    name: str, groups: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    for value, why in IMPOSSIBLE.items():
        if value == "" and (name in EMPTY_IS_A_VALUE or name in ("data.path", "model.base")):
            continue  # said by the field's own rule
        changed = {group: {**groups.get(group, {}), **fields} for group, fields in FIELDS[name](value).items()}
        Path("config.yaml").write_text(json.dumps(groups | changed))
        assert main(["plan", "config.yaml"]) == 2
        said = capsys.readouterr().err
        assert (why in said, len(said.splitlines())) == (True, 1), (value[:20], said)
        assert name.partition(".")[0] in said
    assert {path.name for path in Path().iterdir()} == {"rows.jsonl", "config.yaml"}


@pytest.mark.parametrize("command", OPTIONS, ids=" ".join)
def test_an_option_of_a_command(command: list[str], groups: object, capsys: pytest.CaptureFixture[str]) -> None:
    for value, why in IMPOSSIBLE.items():
        try:
            status: Any = main([value if part == "{}" else part for part in command])
        except SystemExit as error:  # argparse
            status = error.code
        out, err = capsys.readouterr()
        said = [line for line in err.splitlines() if not line.startswith(("usage", " "))]
        assert (status, out, len(said)) == (2, "", 1) and why in said[0], (value[:20], err)
    assert {path.name for path in Path().iterdir()} == {"rows.jsonl", "config.yaml"}


def test_the_store_of_the_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("QLORA_FLOW_STORE", "~nosuch/x")
    assert main(["adapters", "list"]) == 2
    assert capsys.readouterr().err.startswith("QLORA_FLOW_STORE: '~nosuch/x' is no path: there is no user nosuch")


def test_a_file_that_begins_with_a_tilde_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    from tasks.download.identity import moving
    from tasks.download.places import places

    monkeypatch.chdir(tmp_path)
    rows = write_jsonl(Path("~rows.jsonl"), make_rows(2))
    data = DataConfig(path=str(rows))
    assert [place.where for place in places(data, "path")] == ["~rows.jsonl"]
    assert moving(data, ModelConfig(base=str(tiny_model))) == (False, False)
