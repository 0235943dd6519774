"""A version in use answers the same rows as base and candidate, or is left out with a sentence."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.__main__ import main
from tasks.config import EvaluationConfig, ExecutionConfig
from tasks.evaluation.facts import EvaluationFacts
from tasks.evaluation.task import evaluate
from tasks.store.artifact import ArtifactRef, reference
from tasks.store.manifest import describe_files, files_digest, read_manifest
from tasks.store.model import BaseModelRef
from tests.tiny import make_rows, write_jsonl

pytestmark = pytest.mark.usefixtures("prefect_server", "children_here")
CONFIG = EvaluationConfig(max_new_tokens=4, metrics=["loss", "rouge1"])


class Made:
    """Two runs over the same rows: what they left, and their versions."""

    def __init__(self, folder: Path, model: Path) -> None:
        data = write_jsonl(folder / "rows.jsonl", make_rows(60))
        config = folder / "config.yaml"
        config.write_text(
            f"data: {{path: {data}}}\nmodel: {{base: {model}}}\n"
            "training: {learning_rate: 1e-2, lora_r: 4, batch_size: 8, max_steps: 3}\n"
            "evaluation: {max_new_tokens: 4, metrics: [loss, rouge1]}\n"
        )
        summaries = []
        for rate in ("1e-2", "3e-2"):
            file = folder / f"{rate}.json"
            assert main(["run", str(config), "--summary", str(file), "--training.learning_rate", rate]) == 0
            summaries.append(json.loads(file.read_text()))
        self.first, self.second = ({n: Path(s["path"]) for n, s in made["stages"].items()} for made in summaries)
        self.model = BaseModelRef.of(model, str(model), "")

    def evaluate(self, champion: ArtifactRef | None, **changed: ArtifactRef) -> ArtifactRef:
        from prefect.logging import disable_run_logger

        stages = {"train": "train", "tokenize": "tokenize", "format": "format"}
        refs = {name: ref(self.second[name]) for name in stages} | changed
        with disable_run_logger():
            return evaluate.fn(
                refs["train"], refs["tokenize"], refs["format"], self.model, CONFIG, ExecutionConfig(), champion
            )


def ref(folder: Path) -> ArtifactRef:
    return reference(folder, read_manifest(folder))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, prefect_server: None) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("champion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_FLOW_STORE", str(folder / "store"))
        yield Made(folder, tiny_model)


def test_a_champion_answers_as_it_did_when_it_was_the_candidate(made: Made) -> None:
    compared = made.evaluate(ref(made.first["publish"]))
    third, before, own = (
        pq.read_table(folder / "predictions.parquet").to_pylist()
        for folder in (compared.path, made.first["evaluate"], made.second["evaluate"])
    )
    assert len(third) > 3 and {row["id"] for row in third} == {row["id"] for row in before}
    for row, old, new in zip(third, before, own, strict=True):
        for name in ("", "_loss", "_rouge1", "_length"):
            assert row[f"champion{name}"] == pytest.approx(old[f"tuned{name}"])
            assert row[f"tuned{name}"] == pytest.approx(new[f"tuned{name}"])
            assert row[f"base{name}"] == pytest.approx(new[f"base{name}"])
    loss, _ = pq.read_table(compared.path / "scores.parquet").to_pylist()
    means = {who: sum(row[f"{who}_loss"] for row in third) / len(third) for who in ("base", "champion", "tuned")}
    assert {who: loss[who] for who in means} == pytest.approx(means)
    assert loss["champion_difference"] == pytest.approx(means["tuned"] - means["champion"])
    assert loss["champion_low"] <= loss["champion_difference"] <= loss["champion_high"]
    assert loss["difference"] == pytest.approx(means["tuned"] - means["base"])
    facts = compared.facts(EvaluationFacts)
    assert facts.champion == "v0001" and facts.champion_left_out == ""
    alone = pq.read_table(made.second["evaluate"] / "scores.parquet").to_pylist()[0]
    assert alone["champion"] is alone["champion_low"] is None


def version(made: Made, **parts: dict[str, str]) -> Path:
    """A version of its own, whole in itself, whose manifest says something else."""
    folder = made.first["publish"].with_name("v0009")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made.first["publish"], folder)
    (folder / "README.md").write_text(f"another card {parts}")
    was = read_manifest(folder)
    identity = was.identity.model_copy(update={name: getattr(was.identity, name) | parts[name] for name in parts})
    files = describe_files(folder)
    new = {"identity": identity, "key": identity.key, "files": files, "digest": files_digest(files)}
    (folder / "manifest.json").write_bytes(was.model_copy(update=new).encoded())
    return folder


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({}, "is damaged: "),
        ({"inputs": {"model": "0" * 64}}, "has another base or tokenizer than this run"),
        ({"config": {"formatting.prompt": "{{ dialogue }}"}}, "was trained with another formatting.prompt"),
    ],
)
def test_a_champion_that_cannot_answer_these_rows_is_left_out_and_it_is_said(made: Made, parts: Any, why: str) -> None:
    folder = version(made, **parts)
    champion = ref(folder)
    if not parts:
        weights = folder / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    scores = made.evaluate(champion)
    facts = scores.facts(EvaluationFacts)
    assert f"v0009 {why}" in facts.champion_left_out and facts.champion == ""
    assert "champion" not in pq.read_schema(scores.path / "predictions.parquet").names
