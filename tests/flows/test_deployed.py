"""The flows that deployments run beside a single retrain."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter

from flows.__main__ import main
from flows.deployed import evaluate_only
from flows.retrain import retrain
from tasks.config import DataConfig, EvaluationConfig
from tests.tiny import make_rows, write_jsonl


@pytest.mark.usefixtures("prefect_server", "children_here")
def test_configurations_share_stages_and_fail_alone(
    tmp_path: Path, tiny_model: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", make_rows(40))
    folder = tmp_path / "all"
    folder.mkdir()
    common = f"model: {{base: {tiny_model}}}\nevaluation: {{max_new_tokens: 2}}\npublishing: {{name: "
    for name, path, lr in (("a", rows, "1e-3"), ("b", "nowhere.jsonl", "1e-3"), ("c", rows, "2e-3")):
        (folder / f"{name}.yaml").write_text(
            f"{common}{name}}}\ndata: {{path: {path}}}\ntraining: {{max_steps: 2, lora_r: 4, learning_rate: {lr}}}\n"
        )
    (folder / "d.yml").write_text("traning: {}")
    (folder / "e.yaml").write_text((folder / "a.yaml").read_text())
    assert main(["retrain-all", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "3 of 5 failed: b.yaml: data.path: " in said and "d.yml: " in said and "did you mean training?" in said
    assert "e.yaml: publishing.name: a.yaml has a too; give each its own name." in said
    assert {path.parent.name for path in store.glob("registry/*/v0001")} == {"a", "c"}
    assert [len([*store.glob(f"artifacts/{stage}-*")]) for stage in ("tokenize", "train")] == [1, 2]
    for broken in ("b.yaml", "d.yml", "e.yaml"):
        (folder / broken).unlink()
    assert main(["retrain-all", str(folder)]) == 0
    assert "2 configurations: Nothing changed" in capsys.readouterr().out

    assert "data:image/svg+xml;base64," in artifact("retrain-a")  # the loss
    assert "data:image/svg+xml;base64," in artifact("data-a") and "| download | 40 | 0 |" in artifact("data-a")
    assert artifact("report-a").startswith("[a-v0001-")

    other = write_jsonl(tmp_path / "other.jsonl", make_rows(60))  # of which the version was trained on many
    data, few = DataConfig(path=str(other), max_lost_share=1), EvaluationConfig(max_new_tokens=2)
    scored = evaluate_only("a", data, evaluation=few, return_state=True)
    assert scored.is_completed(), scored.message
    assert scored.message.startswith("a v0001 on ") and "It was trained on " in scored.message
    assert "ROUGE-L" in artifact("evaluate-a")
    assert [path.name for path in store.glob("registry/a/v*")] == ["v0001"]  # nothing is trained or published
    missing = evaluate_only("a", data, version="v0009", return_state=True)
    assert missing.is_failed() and missing.message == "There is no version v0009 of a; there is v0001."


def test_wrong_parameters_are_sentences(prefect_server: None) -> None:
    wrong: dict[str, Any] = {
        "data": {"path": "x", "hub_id": "a/b"},
        "training": {"lora_r": 0},
        "promotion": {"guards": ["no"]},
    }
    state = retrain(**wrong, return_state=True)
    assert state.is_failed()
    said = [
        "give either data.path (files) or data.hub_id (a Hub data set), one of the two, or several in data.mix.",
        "training.lora_r: 0 is wrong: input should be greater than or equal to 1. It takes: Rank of the LoRA matrices.",
        "promotion.guards: [\"no\"] is wrong: 'no' is no guard:",
    ]
    assert [line.startswith(wanted) for line, wanted in zip(state.message.splitlines(), said, strict=True)] == 3 * [
        True
    ]


def test_a_folder_without_configurations_is_one_sentence(
    tmp_path: Path, prefect_server: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["retrain-all", str(tmp_path)]) == 1
    assert f"folder: {tmp_path} holds no .yaml file." in capsys.readouterr().err


def artifact(key: str) -> str:
    """The first one of this key."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate({"key": {"any_": [key]}}))
    return str(sorted(found, key=lambda one: one.created)[0].data)
