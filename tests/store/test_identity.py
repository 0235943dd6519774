"""Keys: the same for the same things everywhere, another one for anything that matters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.config_file import load
from tasks.config import DataConfig, EvaluationConfig, FormattingConfig, ModelConfig, PublishingConfig, TrainingConfig
from tasks.download.identity import rows_identity
from tasks.formatting.facts import PromptFacts
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.identity import Identity, digest_of
from tasks.store.model import BaseModelRef
from tests.tiny import Rows, make_rows, noted, write_jsonl

MODEL = BaseModelRef(folder="/m", digest="d", tokenizer_digest="t", source="owner/m", revision="", max_length=512)


def train_key(**fields: object) -> str:
    from tasks.training.identity import identity

    return identity(ArtifactRef(name="x", digest="y"), MODEL, TrainingConfig.model_validate(fields)).key


def test_two_interpreters_agree() -> None:
    code = "from tests.store.test_identity import train_key; print(train_key(target_modules=['q_proj', 'v_proj']))"
    root = Path(__file__).parents[2]
    keys = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert keys == {train_key(target_modules=["q_proj", "v_proj"]) + "\n"}


@pytest.mark.parametrize("text", ["5e-4", "0.0005", "0.00050", "5.0e-4"])
def test_the_way_a_number_is_written_does_not_matter(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"data: {{path: a.jsonl}}\ntraining: {{learning_rate: {text}}}")
    assert train_key(**load(file, {})["training"].model_dump()) == train_key(learning_rate=0.0005)


def test_every_training_field_matters() -> None:
    assert train_key(seed=1) != train_key(seed=2)
    assert train_key(learning_rate=1e-4) != train_key(learning_rate=1.0001e-4)


def test_evaluation_does_not_depend_on_how_training_was_logged(store: Path) -> None:
    from tasks.evaluation.identity import identity

    def adapter(seconds: float) -> ArtifactRef:
        def write(folder: Path) -> Rows:
            (folder / "adapter").mkdir()
            (folder / "adapter" / "weights").write_text("same")
            (folder / "training_log").write_text(str(seconds))
            return Rows()

        return produce(Identity(stage="train", config={"seconds": seconds}), write)

    prompts = produce(Identity(stage="format"), lambda folder: noted(PromptFacts))
    keys = {identity(adapter(s), prompts, prompts, MODEL, EvaluationConfig()).key for s in (1.0, 2.0)}
    assert len(keys) == 1


def test_changed_rows_under_the_same_name_are_noticed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", make_rows(5))
    before = rows_identity(DataConfig(path=str(file))).key
    write_jsonl(file, make_rows(6))
    assert rows_identity(DataConfig(path=str(file))).key != before


def test_the_same_rows_elsewhere_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    files = [write_jsonl(tmp_path / folder / "rows.jsonl", make_rows(5)) for folder in (".", "elsewhere")]
    assert len({rows_identity(DataConfig(path=str(file))).key for file in files}) == 1


def test_a_relative_folder_is_another_one_elsewhere(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.download.identity import identity as download
    from tasks.publishing.identity import identity as publish

    data = DataConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", make_rows(5))))
    adapter = produce(Identity(stage="train"), lambda folder: Rows())
    prompts = produce(Identity(stage="format"), lambda folder: Rows())

    def keys(base: str, registry: str) -> tuple[str, str]:
        versions = publish(adapter, adapter, prompts, MODEL, PublishingConfig(registry=registry))
        return download(data, ModelConfig(base=base)).key, versions.key

    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        (folder / "model").mkdir(parents=True)
        monkeypatch.chdir(folder)
        found.append((keys("model", "versions"), keys("owner/name", "")))
    (here, named), (there, same) = found
    assert here[0] != there[0] and here[1] != there[1]
    assert named == same


def test_prompts_of_a_template_do_not_depend_on_the_model() -> None:
    from tasks.formatting.identity import identity

    rows, other = ArtifactRef(name="x", digest="y"), MODEL.model_copy(update={"tokenizer_digest": "other"})
    for style, same in (("template", True), ("chat", False)):
        config = FormattingConfig.model_validate({"style": style})
        assert (identity(rows, MODEL, config).key == identity(rows, other, config).key) is same


def test_the_version_of_a_stage_is_part_of_the_key() -> None:
    assert Identity(stage="train", version=1).key != Identity(stage="train", version=2).key


def test_order_of_names_does_not_matter() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1})
