"""The plan says what runs and why; refresh and clean do what they say."""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from flows.config_file import load
from flows.run.plan import plan
from tasks.store.artifact import in_use, locked
from tests.tiny import make_rows, write_jsonl

pytestmark = pytest.mark.usefixtures("prefect_server", "children_here")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, children_here: None) -> Path:
    """Configuration of a run that has finished, in a store beside it."""
    folder = tmp_path_factory.mktemp("finished")
    data = write_jsonl(folder / "rows.jsonl", make_rows(40))
    config = folder / "config.yaml"
    config.write_text(
        f"""
data: {{path: {data}}}
model: {{base: {tiny_model}}}
training: {{lora_r: 4, max_steps: 2}}
evaluation: {{max_new_tokens: 4}}
"""
    )
    assert main(["run", str(config), "--store", str(folder / "store")]) == 0
    return config


@pytest.fixture
def config(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLORA_FLOW_STORE", str(finished.parent / "store"))
    return finished


def planned(config: Path, **changes: Any) -> dict[str, str]:
    """Stage → why it runs, empty where it is reused."""
    return {stage.stage: stage.why for stage in plan(load(config, changes))}  # type: ignore[arg-type]


def test_nothing_is_to_be_done(config: Path) -> None:
    assert set(planned(config).values()) == {""}


def test_a_changed_field_is_named_with_its_values(config: Path) -> None:
    assert planned(config, training={"learning_rate": 0.001}) == {
        "download": "",
        "format": "",
        "tokenize": "",
        "train": "learning_rate: 0.0002 → 0.001",
        "evaluate": "train runs",
        "publish": "evaluate runs",
    }


def test_a_template_edit_reaches_every_later_stage(config: Path) -> None:
    whys = planned(config, formatting={"ending": " END"})
    assert whys["format"] == r"ending: '\n\n### End' → ' END'"
    assert (whys["tokenize"], whys["train"]) == ("format runs", "tokenize runs")


def test_grown_data_is_named(config: Path) -> None:
    rows = config.with_name("rows.jsonl")
    before = rows.read_text()
    try:
        write_jsonl(rows, make_rows(41))
        assert planned(config)["download"] == "path 0 rows.jsonl changed"
    finally:
        rows.write_text(before)


def test_damage_is_named(config: Path) -> None:
    tokens = next((config.parent / "store" / "artifacts").glob("tokenize-*/tokens.parquet"))
    before = tokens.read_bytes()
    try:
        tokens.write_bytes(before[:-1] + b"?")
        assert "tokens.parquet has changed" in planned(config)["tokenize"]
    finally:
        tokens.write_bytes(before)


def test_a_folder_without_a_manifest_is_passed_over(config: Path) -> None:
    left = [config.parent / "store" / name for name in ("artifacts/download-0", "registry/adapter/v0000")]
    try:
        for folder in left:
            folder.mkdir()
        assert set(planned(config).values()) == {""}
    finally:
        for folder in left:
            folder.rmdir()


def test_execution_fields_change_nothing(config: Path) -> None:
    assert set(planned(config, execution={"retries": 0, "hang_minutes": 1}).values()) == {""}


def test_the_command_prints_the_plan(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(config), "--training.seed", "5"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "train will run: seed: 0 → 5" in shown
    assert "evaluate will run: train runs" in shown
    assert not any("tokenize will run" in line for line in shown)


def test_refresh_runs_one_stage_again(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = next((config.parent / "store" / "artifacts").glob("evaluate-*/manifest.json"))
    before = made.stat().st_mtime_ns
    assert main(["run", str(config), "--refresh", "evaluate"]) == 0
    assert made.stat().st_mtime_ns > before
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    assert "ran" in lines["evaluate"]
    assert "reused" in lines["train"]


def test_another_adapter_is_not_this_ones_past(config: Path) -> None:
    assert main(["run", str(config), "--publishing.name", "another", "--evaluation.max_new_tokens", "6"]) == 0
    assert planned(config, evaluation={"max_new_tokens": 5})["evaluate"] == "max_new_tokens: 4 → 5"
    other = planned(config, evaluation={"max_new_tokens": 5}, publishing={"name": "another"})
    assert other["evaluate"] == "max_new_tokens: 6 → 5"


def test_clean_keeps_what_versions_were_made_from(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifacts = config.parent / "store" / "artifacts"
    published = {path.name for path in artifacts.iterdir()}
    assert main(["run", str(config), "--evaluation.max_new_tokens", "3", "--publishing.name", "other"]) == 0
    outside = ["--publishing.registry", str(tmp_path / "registry")]
    assert main(["run", str(config), "--evaluation.max_new_tokens", "2", *outside]) == 0
    assert main(["run", str(config), "--evaluation.max_new_tokens", "5"]) == 0
    (artifacts / "train-of-a-killed-run").mkdir()
    before = set(artifacts.iterdir())
    assert main(["clean", "--keep-last", "1", "--dry-run"]) == 0
    assert "1 results would be removed" in capsys.readouterr().out
    assert set(artifacts.iterdir()) == before
    assert main(["clean", "--keep-last", "1"]) == 0
    assert published < {path.name for path in artifacts.iterdir()}
    assert "train-of-a-killed-run" in capsys.readouterr().out
    assert set(artifacts.glob("evaluate-*")) == {path for path in before if path.name.startswith("evaluate-")}


def test_clean_waits_for_no_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with in_use(), in_use():
        assert main(["clean", "--keep-last", "1"]) == 2
        assert main(["run", str(config), "--refresh", "train"]) == 2
    assert capsys.readouterr().err.count("A run is using") == 2
    with locked("store", fcntl.LOCK_EX | fcntl.LOCK_NB):
        pass


def test_what_another_machine_computed_is_fetched(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QLORA_FLOW_REMOTE", f"file://{tmp_path}/remote")
    monkeypatch.setenv("QLORA_FLOW_STORE", str(tmp_path / "first"))
    assert main(["run", str(config)]) == 0
    monkeypatch.setenv("QLORA_FLOW_STORE", str(tmp_path / "second"))
    whys = planned(config)
    assert whys["download"] == f"its result is fetched from file://{tmp_path}/remote"
    assert (whys["format"], whys["publish"]) == ("download is fetched first", "evaluate is fetched first")
    assert main(["run", str(config), "--summary", str(tmp_path / "summary.json")]) == 0
    stages = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert [name for name, stage in stages.items() if stage["outcome"] == "ran"] == ["publish"]
