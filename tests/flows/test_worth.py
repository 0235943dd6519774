"""A retrain that is not worth it ends early and says why; what a run is called and tagged in the Prefect UI."""

import re
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State

from flows.config_file import load
from flows.retrain import retrain
from tests.tiny import make_rows, write_jsonl

pytestmark = pytest.mark.usefixtures("prefect_server", "children_here")


def run_of(state: State[Any]) -> Any:
    assert state.state_details.flow_run_id
    with get_client(sync_client=True) as client:
        return client.read_flow_run(state.state_details.flow_run_id)


def test_a_schedule_decides_whether_new_rows_are_worth_a_run(tmp_path: Path, tiny_model: Path, store: Path) -> None:
    rows, file = tmp_path / "rows.jsonl", tmp_path / "config.yaml"
    file.write_text(
        f"""
data: {{path: {rows}}}
model: {{base: {tiny_model}}}
training: {{lora_r: 4, max_steps: 2}}
evaluation: {{max_new_tokens: 2}}
publishing: {{name: worth}}
"""
    )

    def run(count: int, **overrides: dict[str, Any]) -> State[Any]:
        write_jsonl(rows, make_rows(count))
        return retrain(**load(file, overrides), return_state=True)

    assert str(run(40).message).startswith("Published worth v0001. ")
    same = run(40, schedule={"min_new_rows": 9})
    assert same.name == "Completed"  # by which automations know the end of a run
    assert same.message == "Nothing changed: rows, base, configuration and code are those of worth v0001"
    assert same.result()["outcome"] == "unchanged"

    few = run(44, schedule={"min_new_rows": 9})
    assert few.message == "Skipped: 4 new rows since v0001; schedule.min_new_rows is 9."
    assert few.result() == few.result() | {"outcome": "skipped", "stages": {}}
    assert few.result()["changes"]["added"] == 4
    assert len([*store.glob("artifacts/train-*")]) == 1

    assert str(run(44, schedule={"min_new_rows": 9, "max_age_days": 1e-9}).message).startswith(
        "Published worth v0002. "
    )
    other = run(45, schedule={"min_new_rows": 9}, training={"learning_rate": 1e-3})
    assert str(other.message).startswith("Published worth v0003. ")  # the configuration has changed as well
    assert run_of(other).name == "worth · 45 rows (+1) · lr 0.001"
    assert {"worth", tiny_model.name} <= set(run_of(other).tags)
    named = retrain.with_options(flow_run_name="mine")(**load(file, {}), return_state=True)  # type: ignore[arg-type]
    assert run_of(named).name == "mine"

    trained = len([*store.glob("artifacts/train-*")])
    broken = run(20)
    assert broken.is_failed()
    assert re.match(r"2\d of the 4\d rows of v000\d are gone from the source, more than ", str(broken.message))
    assert len([*store.glob("artifacts/train-*")]) == trained
    assert str(run(20, data={"max_removed_share": 1.0}).message).startswith("Published worth v000")


def test_a_mistake_is_the_message_of_the_state(tmp_path: Path, store: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{path: {tmp_path}/rows.jsonl}}")
    state = retrain(**load(file, {}), return_state=True)
    assert state.is_failed()
    assert str(state.message).startswith(f"data.path: {tmp_path}/rows.jsonl does not exist or is empty")
