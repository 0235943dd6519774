"""The command line: what is wrong is said before anything runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.__main__ import _overrides, _parser, main
from flows.config_file import load
from tasks.config import GROUPS
from tasks.errors import UserError


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("data: {path: a.jsonl}\ntraning: {}", ["no group 'traning'", "training"]),
        ("data: {path: a.jsonl}\ntraining: {lr: 1}", ["training.lr: there is no such field", "learning_rate"]),
        ("data: {path: a.jsonl}\ntraining: {lora_r: 0}", ["training.lora_r: 0 is wrong", "greater than or equal to 1"]),
        ("data: {path: a.jsonl}\ntraining: {quant_type: int3}", ["training.quant_type", "'nf4' or 'fp4'"]),
        ("data: {path: a.jsonl, hub_id: b/c}", ["either data.path", "or data.hub_id"]),
        ("training: {}", ["either data.path"]),
        ("data: [1]", ["data takes fields"]),
        ("just text", ["at its top level"]),
        ("a: [", ["is not YAML"]),
        ("formatting: {prompt: {{ x }}}", ["is not YAML", "unhashable key"]),
        ("data: {path: a}\ntraining: {lora_r: 4}\ntraining: {seed: 1}", ["training stands twice", "line 3"]),
        ("data: {path: a, on: 1}", ["there is no such field"]),
        ("data: {path: a}\ntraining: {max_grad_norm: .inf}", ["training.max_grad_norm: inf is wrong"]),
    ],
)
def test_a_wrong_configuration_is_refused(
    tmp_path: Path, text: str, sentences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert main(["run", str(file)]) == 2
    shown = capsys.readouterr().err
    assert all(sentence in shown for sentence in sentences), shown


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {}\ntraining: {lora_r: 0, seed: -1}\nother: 1")
    with pytest.raises(UserError) as caught:
        load(file, {})
    assert len(str(caught.value).splitlines()) == 4


def test_a_missing_file_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nowhere.yaml"]) == 2
    assert "nowhere.yaml cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--summary", "nowhere/out.json"], "nowhere does not exist"),
        (["--summary", "."], "--summary: . is a folder"),
        (["--store", "config.yaml"], "config.yaml is a file"),
        (["--store", "config.yaml/store"], "config.yaml is a file"),
        (["--training.lr", "1"], "training.lr: there is no such field; training has quantization"),
        (["--training.lr=1"], "training.lr: there is no such field"),
    ],
)
def test_a_wrong_flag_is_said_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QLORA_FLOW_STORE", "store")
    (tmp_path / "config.yaml").write_text("data: {path: a.jsonl}")
    assert main(["run", "config.yaml", *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_a_store_that_is_not_there_is_not_cleaned(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean"]) == 2
    assert f"There is no store {store}" in capsys.readouterr().err
    assert not store.exists()


def test_a_list_is_written_with_commas() -> None:
    options = _parser().parse_args(["run", "config.yaml", "--formatting.references", "a, b,"])
    assert _overrides(options) == {"formatting": {"references": ["a", "b"]}}


def test_flags_lie_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {path: a.jsonl}\ntraining: {learning_rate: 5e-4, lora_r: 4}")
    training = load(file, {"training": {"learning_rate": "1e-3"}})["training"]
    assert training.model_dump()["learning_rate"] == 0.001
    assert training.model_dump()["lora_r"] == 4


def test_every_field_says_what_it_is() -> None:
    for group in GROUPS.values():
        for name, field in group.model_fields.items():
            assert field.description and len(field.description) > 15, name
            assert not field.is_required(), name


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("flows.retrain", ["torch", "transformers", "datasets", "pyarrow"]),
        ("flows.plan", ["prefect", "torch", "transformers", "datasets", "pyarrow"]),
    ],
)
def test_help_and_import_stay_light(module: str, heavy: list[str]) -> None:
    code = f"import sys; import {module}; print([m for m in {heavy} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_a_broken_model_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{")
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{path: examples/dialogues.jsonl}}\nmodel: {{base: {tmp_path}}}")
    assert main(["plan", str(file)]) == 2
    assert "config.json is not JSON" in capsys.readouterr().err


def test_a_hub_out_of_reach_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("data: {path: examples/dialogues.jsonl}\nmodel: {base: owner/name}")
    assert main(["plan", str(file)]) == 1  # the tests forbid the network
    assert capsys.readouterr().err.startswith("The network does not answer, nothing ran: ")
