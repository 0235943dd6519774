"""A version in use answers the same rows as base and candidate, or is left out with a sentence."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flows.__main__ import main
from flows.flow_run import PROGRESS
from tasks.config import EvaluationConfig, ExecutionConfig
from tasks.evaluation import worker
from tasks.evaluation.answers import generate
from tasks.evaluation.answers.kept import Kept
from tasks.evaluation.facts import EvaluationFacts
from tasks.evaluation.identity import answers_identity
from tasks.evaluation.schema import MODELS
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
        self.config, self.data = config, data
        self.first, self.second = self.run("1e-2"), self.run("3e-2")
        self.model = BaseModelRef.of(model, str(model), "")

    def run(self, rate: str, *more: str) -> dict[str, Path]:
        """Where a run's stages are."""
        file = self.config.with_suffix(".json")
        assert main(["run", str(self.config), "--summary", str(file), "--training.learning_rate", rate, *more]) == 0
        return {name: Path(stage["path"]) for name, stage in json.loads(file.read_text())["stages"].items()}

    def evaluate(
        self, champion: ArtifactRef | None, config: EvaluationConfig = CONFIG, **changed: ArtifactRef
    ) -> ArtifactRef:
        from prefect.logging import disable_run_logger

        stages = {"train": "train", "tokenize": "tokenize", "format": "format"}
        refs = {name: ref(self.second[name]) for name in stages} | changed
        with disable_run_logger():
            return evaluate.fn(
                refs["train"], refs["tokenize"], refs["format"], self.model, config, ExecutionConfig(), champion
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
    loss, *_ = pq.read_table(compared.path / "scores.parquet").to_pylist()
    means = {who: sum(row[f"{who}_loss"] for row in third) / len(third) for who in ("base", "champion", "tuned")}
    assert {who: loss[who] for who in means} == pytest.approx(means)
    assert loss["champion_difference"] == pytest.approx(means["tuned"] - means["champion"])
    assert loss["champion_low"] <= loss["champion_difference"] <= loss["champion_high"]
    assert loss["difference"] == pytest.approx(means["tuned"] - means["base"])
    facts = compared.facts(EvaluationFacts)
    assert facts.champion == "v0001" and facts.champion_left_out == ""
    alone = pq.read_table(made.evaluate(None).path / "scores.parquet").to_pylist()[0]
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


def test_the_next_retrain_computes_the_new_rows_alone(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth more rows and another adapter: of base and champion only what is new is answered and predicted."""
    counts: list[tuple[str, int]] = []
    for name in ("answer", "losses"):

        def counted(model: Any, rows: Any, *more: Any, name: str = name, usual: Any = getattr(generate, name)) -> Any:
            counts.append((name, len(rows)))
            return usual(model, rows, *more)

        monkeypatch.setattr(generate, name, counted)
    rows = make_rows(90)
    for number, row in enumerate(rows):
        row["dialogue"] += f"\nEve: Number {number}."  # no prompt comes twice
    write_jsonl(made.data, rows[:80])
    champion = made.run("1e-2")
    before = len(pq.read_table(champion["evaluate"] / "predictions.parquet"))
    write_jsonl(made.data, rows)
    counts.clear()
    third = made.run("2e-2")
    now = pq.read_table(third["evaluate"] / "predictions.parquet")
    new = len(now) - before
    assert 0 < new < before
    base, in_use, tuned = new, new, len(now)
    assert counts == [("answer", rows) for rows in (base, in_use, tuned)]  # which gives the losses as well
    counts.clear()
    stages = {name: ref(third[name]) for name in ("train", "tokenize", "format")}
    compared = made.evaluate(ref(champion["publish"]), **stages)
    assert counts == [("answer", new)]  # those of a version that is not in use
    assert pq.read_table(compared.path / "predictions.parquet")["base"] == now["base"]


def test_rows_that_the_champion_was_trained_on_are_left_out_and_counted(made: Made) -> None:
    """More rows are held out than when the champion was made: some of them are rows that it was trained on."""
    write_jsonl(made.data, [row | {"dialogue": f"{row['dialogue']} {n}"} for n, row in enumerate(make_rows(80))])
    champion, later = made.run("1e-2"), made.run("4e-2", "--data.test_share", "0.5")

    def ids(folder: Path, side: str) -> set[str]:
        return {row["id"] for row in pq.read_table(folder / "prompts.parquet").to_pylist() if row["split"] == side}

    trained, now = ids(champion["format"], "train"), ids(later["format"], "test")
    stages = {name: ref(later[name]) for name in ("train", "tokenize", "format")}
    compared = made.evaluate(ref(champion["publish"]), **stages)
    facts = compared.facts(EvaluationFacts)
    assert 0 < facts.left_out == len(now & trained) < len(now)
    assert {row["id"] for row in pq.read_table(compared.path / "predictions.parquet").to_pylist()} == now - trained
    ledger = pq.read_table(compared.path / "ledger.parquet").to_pylist()
    assert {row["id"] for row in ledger} == now & trained and {row["verdict"] for row in ledger} == {"left out"}
    shutil.rmtree(champion["format"])
    facts = made.evaluate(ref(champion["publish"]), **stages).facts(EvaluationFacts)
    assert (facts.rows, facts.left_out) == (len(now), 0) and "was trained on is not in this store" in facts.unknown


def test_rows_divided_among_processes_are_answered_as_by_one(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    config, champion = CONFIG.model_copy(update={"max_new_tokens": 5}), ref(made.first["publish"])
    monkeypatch.setattr(worker, "WORTH", 0)
    monkeypatch.setattr(worker, "gpus", lambda job: ["", ""])  # two processes without a GPU
    divided = made.evaluate(champion, config)
    several = pq.read_table(divided.path / "predictions.parquet").to_pylist()
    for folder in (*divided.path.parent.glob("answers-*"), divided.path):
        shutil.rmtree(folder)
    monkeypatch.setattr(worker, "gpus", lambda job: [])
    one = pq.read_table(made.evaluate(champion, config).path / "predictions.parquet").to_pylist()
    assert [[row[who] for who in MODELS] for row in several] == [[row[who] for who in MODELS] for row in one]
    for row, same in zip(several, one, strict=True):
        assert [row[f"{who}_loss"] for who in MODELS] == pytest.approx([same[f"{who}_loss"] for who in MODELS])


def test_kept_answers_that_are_damaged_are_computed_again(store: Path) -> None:
    said: list[str] = []
    kept = Kept(answers_identity("m", "", "cpu", {}, {}), said.append)

    def ask(*texts: str) -> list[list[int]]:
        return kept.all("answer", [([*text.encode()],) for text in texts], lambda new: [[n] for n in new])

    assert ask("a", "b", "a") == [[2], [1], [2]]
    assert kept.all("loss", [([1], [2])], lambda new: [0.5]) == [0.5]
    assert ask("b", "c") == [[1], [1]] and said[-1] == "answers kept before: 1 of 2"
    assert not PROGRESS.match(f"base: {said[-1]}")  # or a log of a terminal would not show it
    file = next(store.glob("artifacts/answers-*/answers.parquet"))
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert ask("b", "d") == [[0], [1]]
    assert any("is computed again" in line and "answers.parquet has changed" in line for line in said)
    assert ask("d", "b") == [[1], [0]] and said[-1] == "answers kept before: 2 of 2"
