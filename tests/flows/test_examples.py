"""The shipped examples: the bundled data, and the article's own run with the Hub pointed at files."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from flows.config_file import load
from tasks.download.rows import write_rows
from tests.tiny import make_rows, write_jsonl

ROOT = Path(__file__).parents[2]


def test_the_bundled_dialogues_are_varied_and_complete() -> None:
    rows = [json.loads(line) for line in (ROOT / "examples/dialogues.jsonl").read_text().splitlines()]
    assert len(rows) >= 240
    assert all(list(row) == ["id", "dialogue", "summary", "topic"] and all(row.values()) for row in rows)
    turns = [row["dialogue"].count("\n") + 1 for row in rows]
    assert set(turns) == set(range(3, 13))
    for column in ("id", "dialogue", "summary"):
        assert len({row[column] for row in rows}) == len(rows), column
    assert len({row["topic"] for row in rows}) > 100


@pytest.mark.parametrize("example", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_valid_configuration(example: Path) -> None:
    load(example, {})


def test_the_example_of_a_mix_is_what_its_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    info = write_rows(load(ROOT / "examples/mix.yaml", {})["data"], tmp_path)  # type: ignore[arg-type]
    page = (ROOT / "docs/data.md").read_text()
    for name, counts in info.sources.items():
        assert f"| {name} | {counts['read']} | {counts['train']} | {counts['test']} |" in page


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> dict[str, Any]:
    """The Hub calls of a run, answered from files; what was asked for is noted."""
    import datasets
    import huggingface_hub

    asked: dict[str, Any] = {}
    commits = {"dataset": "d" * 40, "model": "e" * 40}

    def repo_info(self: Any, repo_id: str, *, repo_type: str, revision: str | None, token: None = None) -> Any:
        return huggingface_hub.DatasetInfo(id=repo_id, sha=commits[repo_type])

    def load_dataset(name: str, subset: str | None, *, split: str, revision: str, **_: Any) -> Any:
        asked[split] = (name, subset, revision)
        return datasets.Dataset.from_list(make_rows(40)[:30] if split == "train" else make_rows(40)[30:])

    def snapshot_download(name: str, *, revision: str, allow_patterns: list[str], **_: Any) -> str:
        asked["model"] = (name, revision)
        assert not any("bin" in pattern or "pt" in pattern for pattern in allow_patterns)
        return str(tiny_model)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["train", "validation", "test"])
    return asked


@pytest.mark.usefixtures("prefect_server", "children_here")
def test_the_articles_own_run(hub: dict[str, Any], store: Path, tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    flags = ["--training.max_steps", "2", "--evaluation.max_new_tokens", "4", "--training.optimizer", "adamw"]
    assert main(["run", str(ROOT / "examples/llama3-dialogsum.yaml"), "--summary", str(summary), *flags]) == 0
    assert hub["train"] == hub["test"] == ("neil-code/dialogsum-test", None, "d" * 40)
    assert hub["model"] == ("meta-llama/Meta-Llama-3-8B-Instruct", "e" * 40)
    version = Path(json.loads(summary.read_text())["published"]["path"])
    adapter = json.loads((version / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert adapter["revision"] == "e" * 40


@pytest.mark.usefixtures("prefect_server", "children_here")
def test_every_stage_can_be_called_as_plain_python(
    store: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, config = write_jsonl(tmp_path / "rows.jsonl", make_rows(40)), tmp_path / "my.yaml"
    config.write_text(
        f"data: {{path: {rows}}}\nmodel: {{base: {tiny_model}}}\ntraining: {{max_steps: 2, lora_r: 4}}\n"
        "evaluation: {max_new_tokens: 2}\n"
    )
    version = runpy.run_path(str(ROOT / "examples/stage_by_stage.py"))["main"](config)
    shown = capsys.readouterr().out
    assert [line.partition(":")[0] for line in shown.splitlines() if str(store) in line] == [
        *("rows", "prompts", "tokens", "adapter", "scores", "version")
    ]
    assert (version.path / "adapter_model.safetensors").exists()
    assert main(["run", str(config), "--summary", str(tmp_path / "summary.json")]) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["outcome"] == "unchanged"  # it finds what was made
