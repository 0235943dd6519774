"""Watch sets: rows of other tasks are scored beside the held-out ones and never trained on."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from flows.__main__ import main
from tasks.evaluation.facts import EvaluationFacts
from tasks.store.manifest import read_manifest
from tests.tiny import make_rows, write_jsonl

pytestmark = pytest.mark.usefixtures("prefect_server", "children_here")
QUESTIONS = [{"id": f"q{n}", "question": f"How much is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(4)]
FORMAT = {"prompt": "{{ question }}", "completion": "{{ answer }}", "ending": " END", "input_column": "question"}


def run(
    folder: Path, model: Path, capsys: Any, set: list[dict[str, Any]], **more: Any
) -> tuple[int, dict[str, Any], str]:
    """Exit status, summary and log of a run with a watch set."""
    rows = [row | {"dialogue": f"{row['dialogue']} {n}"} for n, row in enumerate(make_rows(40))]
    rows.append({"id": "odd", "dialogue": QUESTIONS[1]["question"], "summary": "It is 2.", "topic": "sums"})
    watch = {"name": "sums", "path": str(write_jsonl(folder / "watch.jsonl", set)), "formatting": FORMAT}
    groups: dict[str, Any] = {
        "data": {"path": str(write_jsonl(folder / "rows.jsonl", rows)), "test_share": 0.3},
        "model": {"base": str(model)},
        "training": {"learning_rate": 0.01, "lora_r": 4, "batch_size": 8, "max_steps": 2},
        "evaluation": {"max_new_tokens": 4, "metrics": ["loss", "rouge1"], "watch": [watch]},
        "promotion": {"guards": ["rouge1[watch=sums] 1"]},
    }
    for group, fields in more.items():
        groups[group] = groups.get(group, {}) | fields
    config, summary = folder / "config.yaml", folder / "summary.json"
    config.write_text(yaml.safe_dump(groups))
    status = main(["run", str(config), "--summary", str(summary)])
    said = capsys.readouterr()
    return status, json.loads(summary.read_text()) if summary.exists() else {}, said.out + said.err


def test_all_models_answer_the_set_and_its_scores_are_apart(
    tmp_path: Path, store: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, summary, said = run(tmp_path, tiny_model, capsys, QUESTIONS)
    assert status == 0, said
    scored = Path(summary["stages"]["evaluate"]["path"])
    rows = pq.read_table(scored / "watched.parquet").to_pylist()
    assert [(row["id"], row["watch"], row["references"]) for row in rows] == [
        (row["id"], "sums", [row["answer"]]) for row in QUESTIONS
    ]
    assert rows[0]["prompt"].endswith("How much is 0 and 0?") and all(row["base_loss"] > 0 for row in rows)
    held_out = pq.read_table(scored / "predictions.parquet")
    assert not {row["id"] for row in QUESTIONS} & {*held_out["id"].to_pylist()}
    facts = read_manifest(scored).facts(EvaluationFacts)
    assert facts.rows == len(held_out) and [line["metric"] for line in facts.watch] == ["loss", "rouge1"]
    line = facts.watch[0]
    assert (line["slice"], line["value"], line["rows"]) == ("watch", "sums", 4) and line["low"] <= line["difference"]
    assert line["tuned"] == pytest.approx(sum(row["tuned_loss"] for row in rows) / 4)
    assert summary["watch"] == facts.watch
    for page in (Path(summary["published"]["path"], "README.md"), Path(summary["report"])):
        assert all(text in page.read_text() for text in ("sums (4, rough)", "held-out loss"))
    assert "Promoted v0001" in summary["said"] or "no better" in summary["said"]


def one(**row: str) -> list[dict[str, str]]:
    return [{"id": "w", **row}]


@pytest.mark.parametrize(
    ("set", "more", "why"),
    [
        (
            [*QUESTIONS[:1], *one(question="How much is 1 and 1?", answer="Two.")],
            {"formatting": {"prompt": "{{ dialogue }}"}},
            "evaluation.watch, sums: row 'w', a near copy of it or its prompt is in the training data",
        ),
        (QUESTIONS, {"promotion": {"guards": ["rouge1[watch=other] 0.1"]}}, "has no set called other; it has sums"),
        (one(question="Who?", answer=""), {}, "evaluation.watch, sums: row w: empty answer"),
        (one(question="Who?", answer="!!!"), {}, "a reference of held-out row 'w' has no word"),
        (one(query="Who?", answer="me"), {}, "evaluation.watch, sums: "),
        ([], {}, "evaluation.watch, sums: "),
        (QUESTIONS, {"evaluation": {"watch": [{"name": "sums", "path": "no.jsonl"}]}}, "evaluation.watch, sums: /"),
    ],
)
def test_before_training_a_set_is_refused(
    tmp_path: Path, store: Path, tiny_model: Path, capsys: Any, set: Any, more: Any, why: str
) -> None:
    status, _, said = run(tmp_path, tiny_model, capsys, set, **more)
    assert status and why in said and "Traceback" not in said
    assert not list(store.glob("artifacts/train-*"))
