"""The whole flow on a tiny model: six stages, again, and with one thing changed."""

import html
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.__main__ import main
from tasks.errors import UserError
from tests.tiny import make_rows, write_jsonl

pytestmark = pytest.mark.usefixtures("prefect_server", "children_here")
STAGES = ["download", "format", "tokenize", "train", "evaluate", "publish"]


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path) -> Path:
    data = write_jsonl(tmp_path / "rows.jsonl", make_rows(40))
    file = tmp_path / "config.yaml"
    file.write_text(
        f"""
data: {{path: {data}}}
model: {{base: {tiny_model}}}
training: {{learning_rate: 1e-2, lora_r: 4, batch_size: 8, max_steps: 3}}
evaluation: {{max_new_tokens: 8}}
"""
    )
    return file


def run(config: Path, *flags: str) -> dict:
    summary = config.with_name("summary.json")
    assert main(["run", str(config), "--summary", str(summary), *flags]) == 0
    return json.loads(summary.read_text())


def outcomes(summary: dict) -> list[str]:
    return [stage["outcome"] for stage in summary["stages"].values()]


def test_a_run_leaves_every_artifact_and_a_second_run_reuses_it(
    config: Path, store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead: list[str] = []
    monkeypatch.setattr("flows.retrain.gpus", lambda: 1)
    monkeypatch.setattr("flows.retrain.start_ahead", lambda *modules: ahead.extend(modules))
    first = run(config)
    assert ahead == ["tasks.training.worker", "tasks.evaluation.worker", "tasks.promotion.clean_room"]
    shown = capsys.readouterr().out
    assert first["verdict"] in shown and "the base" in first["verdict"]
    assert re.search(r"^Training loss \d\.\d+ → \d\.\d+ in 3 steps", shown, re.MULTILINE)
    assert re.search(r"^time     (\d+ min )?\d+ s$", shown, re.MULTILINE)
    assert first["seconds"] >= sum(stage["seconds"] for stage in first["stages"].values())
    assert list(first["stages"]) == STAGES
    assert outcomes(first) == ["ran"] * 6
    paths = {name: Path(stage["path"]) for name, stage in first["stages"].items()}
    for name, file in {
        "download": "rows.parquet",
        "format": "prompts.parquet",
        "tokenize": "tokens.parquet",
        "train": "training_log.parquet",
        "evaluate": "predictions.parquet",
    }.items():
        assert pq.read_table(paths[name] / file).num_rows > 0
    log = pq.read_table(paths["train"] / "training_log.parquet").to_pydict()
    assert log["step"] == [1, 2, 3]
    assert all(value > 0 for value in log["grad_norm"])
    assert (paths["publish"] / "adapter_model.safetensors").exists()
    assert "safetensors" in (paths["publish"] / "SHA256SUMS").read_text()
    report = Path(first["report"]).read_text()
    assert report.startswith("<!doctype html>")
    decided = first["promotion"]["sentence"]
    assert decided.startswith("Promoted v0001: held-out loss ") and decided.rstrip(".") in shown
    for text in (first["said"] + ".", html.unescape(report), (paths["publish"].parent / "README.md").read_text()):
        assert decided in text

    again = run(config)
    assert outcomes(again) == ["reused"] * 6
    assert again["published"] == first["published"]
    assert len(ahead) == 3  # nothing is started for results that exist
    assert again["promotion"]["sentence"].startswith("Kept v0001: it is the version in use since ")

    changed = run(config, "--training.learning_rate", "2e-2")
    assert outcomes(changed) == ["reused"] * 3 + ["ran"] * 3
    assert changed["published"]["version"] == "v0002"

    evaluated = run(config, "--evaluation.max_new_tokens", "4")
    assert outcomes(evaluated) == ["reused"] * 4 + ["ran"] * 2
    assert evaluated["changes"] == {}

    def refuse(*_: object) -> None:
        raise UserError("v0001 does not load on its base: a key is missing")

    monkeypatch.setattr("tasks.promotion.task.try_out", refuse)  # another name: every stage but the last is reused
    assert main(["run", str(config), "--publishing.name", "other"]) == 1
    refused = "Refused v0001, and the base stays in use: v0001 does not load on its base: a key is missing."
    assert refused in capsys.readouterr().err
    assert refused in (store / "registry" / "other" / "README.md").read_text()
    (report,) = (store / "reports").glob("other-v0001-*.html")
    assert refused in html.unescape(report.read_text())


def test_what_changed_in_the_rows_is_said(
    config: Path, tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config)
    rows = make_rows(43)[1:]
    rows[4]["summary"] = "They meet elsewhere."
    write_jsonl(tmp_path / "rows.jsonl", rows)
    changes = run(config)["changes"]
    counts = {"added": 3, "removed": 1, "changed": 1, "same": 38}
    assert changes == {"since": "v0001", "rows": 5, **counts}
    assert "rows since v0001: 3 added, 1 removed, 1 changed, 38 same" in capsys.readouterr().out
    again = run(config)
    assert outcomes(again) == ["reused"] * 6
    assert again["changes"] == changes  # still against the version before
    (folder,) = (store / "artifacts").glob("difference-*")
    lines = pq.read_table(folder / "difference.parquet").to_pylist()
    assert [(line["id"], line["what"]) for line in lines] == [
        ("r040", "added"),
        ("r041", "added"),
        ("r042", "added"),
        ("r000", "removed"),
        ("r005", "changed"),
    ]


def test_the_cards_own_program_gives_the_reports_answer(config: Path, store: Path, tiny_model: Path) -> None:
    summary = run(config, "--training.max_steps", "40", "--evaluation.max_new_tokens", "24")
    version = Path(summary["published"]["path"])
    assert json.loads((version / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_model)
    predictions = pq.read_table(Path(summary["stages"]["evaluate"]["path"]) / "predictions.parquet").to_pylist()
    answer = next(row for row in predictions if row["tuned"] not in ("", row["base"]))
    row = next(row for row in make_rows(40) if row["id"] == answer["id"])
    (program,) = re.findall(r"^```python\n(.*?)^```$", (version / "README.md").read_text(), re.S | re.M)
    for placeholder, given in ("FOLDER OF THE BASE MODEL", str(tiny_model)), ("...", row["dialogue"]):
        assert program.count(repr(placeholder)) == 1
        program = program.replace(repr(placeholder), repr(given))
    done = subprocess.run([sys.executable, "-c", program], cwd=version, capture_output=True, text=True, check=True)
    assert done.stdout == answer["tuned"] + "\n"


def test_another_data_set_is_a_yaml_file_away(tmp_path: Path, store: Path, tiny_model: Path) -> None:
    rows = [
        {"instruction": "Add the numbers.", "input": f"{n} and {n + 1}" if n % 3 else "", "output": f"{2 * n + 1}"}
        for n in range(30)
    ]
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
data: {{path: {write_jsonl(tmp_path / "rows.jsonl", rows)}}}
model: {{base: {tiny_model}}}
formatting:
  prompt: "### Instruction: {{{{ instruction }}}}\\n\\n\
{{% if input %}}### Input: {{{{ input }}}}\\n\\n{{% endif %}}### Response:\\n"
  completion: "{{{{ output }}}}"
  ending: ""
  input_column: input
training: {{max_steps: 2, lora_r: 4}}
evaluation: {{max_new_tokens: 4}}
"""
    )
    prompts = pq.read_table(Path(run(config)["stages"]["format"]["path"]) / "prompts.parquet").to_pylist()
    assert "### Instruction: Add the numbers.\n\n### Response:\n" in {row["prompt"] for row in prompts}


def test_a_conversation_goes_through_the_models_own_template(tmp_path: Path, store: Path, tiny_model: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"你好 {n}"}, {"role": "assistant", "content": f"再见 {n}"}]}
        for n in range(30)
    ]
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
data: {{path: {write_jsonl(tmp_path / "rows.jsonl", rows)}}}
model: {{base: {tiny_model}}}
formatting: {{style: chat}}
training: {{max_steps: 2, lora_r: 4}}
evaluation: {{max_new_tokens: 4}}
"""
    )
    tokens = pq.read_table(Path(run(config)["stages"]["tokenize"]["path"]) / "tokens.parquet").to_pylist()
    for row in tokens:
        assert row["input_ids"].count(0) == 1  # one beginning of text
        assert row["labels"][-1] == 1  # the end of the turn is learnt


def test_too_many_lost_rows_end_the_run_in_one_sentence_said_once(
    config: Path,
    tmp_path: Path,
    store: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("prefect.flow_runs", "prefect.task_runs"):  # what their own handlers would print
        monkeypatch.setattr(logging.getLogger(name), "handlers", [caplog.handler])
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{broken\n" * 10)
    assert main(["run", str(config)]) == 1
    shown = capsys.readouterr().err
    assert (shown + caplog.text).count("10 of 50 rows are lost") == 1
    assert "Finished in state Failed" in caplog.text
    assert "rows.jsonl line 41" in shown
    assert "Traceback" not in shown


def test_a_reference_that_cannot_be_scored_ends_the_run_before_training(
    config: Path, tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "summary": "👍 !"} if n % 4 == 0 else row for n, row in enumerate(make_rows(40))]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    refused = r"held-out row 'r0\d\d'.* has no word or number for rougeL to count"
    assert main(["run", str(config), "--evaluation.metrics", "loss,exact_match,rougeL"]) == 1
    assert re.search(refused, capsys.readouterr().err)
    assert not [*store.glob("artifacts/train-*")]
    run(config, "--evaluation.metrics", "loss")
    assert main(["run", str(config), "--evaluation.metrics", "loss,rougeL"]) == 1  # training is reused
    assert re.search(refused, capsys.readouterr().err)
    assert len([*store.glob("artifacts/evaluate-*")]) == 1


def test_a_run_is_scored_by_a_metric_of_the_users_own(
    config: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "judge.py").write_text(
        "def signs(predictions, references):\n    return [len(p) + 100 for p in predictions]"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.syspath_prepend(tmp_path / "site")
    summary = run(config, "--evaluation.metrics", "chrf,judge:signs", "--promotion.metric", "chrf")
    assert [*summary["scores"]] == ["chrf", "judge:signs"]
    assert summary["scores"]["judge:signs"]["tuned"] >= 100
    (rows,) = store.glob("artifacts/evaluate-*/predictions.parquet")
    assert all(row["tuned_judge:signs"] == 100 + len(row["tuned"]) for row in pq.read_table(rows).to_pylist())
    assert set(summary["health"]) == {"empty", "never_ending", "repeating", "copied", "length"}
    shown = capsys.readouterr().out
    assert "judge:signs" in shown and "never ending" in shown
    assert "judge:signs" in Path(summary["report"]).read_text()
    assert "| `judge:signs` |" in (Path(summary["published"]["path"]) / "README.md").read_text()


def test_an_adapter_that_is_damaged_after_training_is_made_anew_in_the_same_run(
    config: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    from tasks.evaluation import task

    own, damaged = task.run_child, []

    def damaging(*arguments: object) -> None:
        if not damaged:
            damaged.extend(store.glob("artifacts/train-*/adapter/adapter_model.safetensors"))
            raw = bytearray(damaged[0].read_bytes())
            raw[-1] ^= 1
            damaged[0].write_bytes(raw)
        own(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(task, "run_child", damaging)
    summary = run(config)
    assert summary["published"]["version"] == "v0001"
    shown = "".join(capsys.readouterr()) + caplog.text
    assert "adapter_model.safetensors has changed since it was written. The stages run again" in shown
    assert "Traceback" not in shown
    published = Path(summary["published"]["path"]) / "adapter_model.safetensors"
    assert published.read_bytes() == damaged[0].read_bytes()
    assert summary["stages"]["tokenize"]["outcome"] == "ran"  # in this run, and once
