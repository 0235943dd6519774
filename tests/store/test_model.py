"""A folder as base model: what needs the author's own Python code is refused, whatever is answered to a question."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest

from tasks.errors import UserError
from tasks.store.model import BaseModelRef

CODE = "open({mark!r}, 'w')\nfrom transformers import LlamaConfig as Own, LlamaForCausalLM as OwnModel\n"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that brings code of its own, which leaves `ran` behind; somebody answers yes to everything."""
    shutil.copytree(tiny_model, folder := tmp_path / "model")
    (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 99))
    return folder


def change(file: Path, **fields: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_a_known_architecture_is_loaded_without_the_code_it_brings(folder: Path, tmp_path: Path) -> None:
    change(folder / "config.json", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"})
    assert BaseModelRef.of(folder, "m", "").max_length == 512
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}),
        ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "other/repository--own.Own"}}),
        ("config.json", {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "own.OwnModel"}}),
        ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}),
        ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": ["own.Own", None]}),
    ],
)
def test_a_model_that_needs_its_own_code_is_refused(
    folder: Path, tmp_path: Path, file: str, fields: dict[str, object]
) -> None:
    if file == "tokenizer_config.json":
        change(folder / "config.json", model_type="qwen2_audio_encoder")  # a type without a tokenizer of its own
    change(folder / file, **fields)
    with pytest.raises(UserError, match=r"model\.base: .*/model needs Python code that comes with the model"):
        BaseModelRef.of(folder, "m", "")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation_internal": "somebody/kernel@main"},
        {"text_config": {"attn_implementation": {"": "somebody/kernel"}}},
        {"experts_implementation": "somebody/kernel"},
    ],
)
def test_a_model_that_names_somebodys_kernel_is_refused(folder: Path, fields: dict[str, object]) -> None:
    change(folder / "config.json", **fields)
    with pytest.raises(UserError, match=r"config\.json asks for code of the repository .*somebody/kernel"):
        BaseModelRef.of(folder, "m", "")


def test_an_attention_of_transformers_is_no_repository(folder: Path) -> None:
    change(folder / "config.json", attn_implementation="sdpa")
    assert BaseModelRef.of(folder, "m", "")
