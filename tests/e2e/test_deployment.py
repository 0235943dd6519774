"""Scheduled and triggered for real: a server and a worker on loopback, runs with changed and with wrong fields."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.documented import ROOT
from tests.e2e.served import Served, Webhook, wait_for

pytestmark = pytest.mark.slow


def test_the_schedule_plans_runs(deployed: Served) -> None:
    nightly = deployed.api("/deployments/name/retrain/nightly")
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
    runs = wait_for(
        lambda: deployed.api("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}),
        "nothing was scheduled",
    )
    weekly = deployed.api("/deployments/name/clean/clean")
    assert {run["deployment_id"] for run in runs} <= {nightly["id"], weekly["id"]}


def test_both_deployments_are_the_example(deployed: Served) -> None:
    from flows.config_file import load
    from tasks.config import SECTIONS

    example = load(ROOT / "examples/dialogue-summary.yaml", {})
    for name in ("nightly", "on-demand"):
        parameters = deployed.api(f"/deployments/name/retrain/{name}")["parameters"]
        assert {n: g.model_validate(parameters.get(n, {})) for n, g in SECTIONS.items()} == example


def test_a_triggered_run_publishes_and_is_reused(deployed: Served, parameters: dict[str, Any], tmp_path: Path) -> None:
    run = deployed.trigger(parameters)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert (tmp_path / "registry" / "adapter" / "v0001" / "adapter_model.safetensors").exists()
    artifacts = deployed.api("/artifacts/filter", {"artifacts": {"key": {"any_": ["retrain-adapter"]}}})
    assert "| train | ran |" in artifacts[0]["data"]

    assert (run["name"].partition(" · ")[0], run["name"].rpartition(" · ")[2]) == ("adapter", "lr 0.0002")
    deployed.worker.suspend()  # as a machine that is off while two runs are due
    missed = [deployed.start_run(parameters), deployed.start_run(parameters, name="my own")]
    deployed.worker.resume()
    first, again = (wait_for(lambda id=id: deployed.finished(id), "a missed run did not finish") for id in missed)
    assert first["state"]["message"].startswith("Skipped: this run is due again")
    assert again["state"]["message"].startswith("Nothing changed: ")
    assert again["name"] == "my own"

    def states() -> list[str]:
        tasks = deployed.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [again["id"]]}}})
        return sorted(task["state_name"] for task in tasks)

    # the server writes task runs down a moment after the run has ended
    # promote is no cached stage: it looks up what was decided
    wait_for(lambda: states() == ["Cached"] * 6 + ["Completed"], f"not every stage was reused: {states()}")


@pytest.mark.parametrize(
    ("group", "value"),
    [
        ("training", {"lora_r": 0}),
        ("training", {"lr": 1}),
        ("formatting", {"style": "prose"}),
        ("evaluation", {"metrics": ["difflib:get_close_matches"]}),  # code
    ],
)
def test_a_wrong_field_is_refused_when_it_is_triggered(deployed: Served, group: str, value: dict[str, Any]) -> None:
    refused = deployed.prefect("deployment", "run", "retrain/on-demand", "--params", json.dumps({group: value}))
    assert refused.returncode != 0
    assert next(iter(value)) in refused.stdout + refused.stderr or str(value) in refused.stdout + refused.stderr


def test_a_mistake_in_the_data_is_one_sentence_in_the_ui(deployed: Served, parameters: dict[str, Any]) -> None:
    run = deployed.trigger(parameters | {"data": {"path": "/nowhere/rows.jsonl"}})
    assert run["state_type"] == "FAILED"
    assert run["state"]["message"].startswith("data.path: /nowhere/rows.jsonl does not exist")
    told = wait_for(lambda: [text for text in Webhook.said if text.startswith("retrain failed")], "nobody was told")
    assert told[0].startswith(f"retrain failed: {run['name']}\ndata.path: /nowhere/rows.jsonl does not exist")
    logs = deployed.api("/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    assert not any("Traceback" in line["message"] for line in logs)


def test_the_server_refuses_who_does_not_know_the_secret(deployed: Served) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{deployed.url}/api/deployments/name/retrain/on-demand", timeout=60)
