"""Scheduled and triggered for real: a server and a worker on loopback, runs with changed and with wrong fields."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_rows, write_jsonl

ROOT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


class Deployed:
    """A server with both deployments and a worker, and the environment that reaches it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "PWD": str(ROOT),
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        }
        self.store = {  # in place of the one in the working tree
            "QLORA_FLOW_STORE": str(folder / "store"),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(folder / "store" / "results"),
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.log").open("wb")
        self.processes.append(
            subprocess.Popen([*PREFECT, *command], env=self.environment, cwd=ROOT, stdout=log, stderr=log)
        )

    def prefect(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PREFECT, *command], env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=120
        )

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/api{path}",
            data,
            {"Content-Type": "application/json"},
            method="GET" if body is None else "POST",
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def trigger(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Start a run from the on-demand deployment and wait for its end."""
        deployment = self.api("/deployments/name/retrain/on-demand")
        run = self.api(
            f"/deployments/{deployment['id']}/create_flow_run",
            {"parameters": parameters, "job_variables": {"env": self.store}},
        )
        return wait_for(lambda: self.finished(run["id"]), 180, "the run did not finish")

    def finished(self, id: str) -> dict[str, Any] | None:
        run = self.api(f"/flow_runs/{id}")
        return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def wait_for(probe: Any, seconds: float, complaint: str) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := probe():
                return found
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(complaint)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    server = Deployed(tmp_path_factory.mktemp("server"))
    try:
        server.start("server", "start", "--host", "127.0.0.1", "--port", str(server.port))
        wait_for(lambda: server.api("/health"), 120, "the server did not start")
        assert server.prefect("work-pool", "create", "gpu", "--type", "process").returncode == 0
        done = server.prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
        server.start("worker", "start", "--pool", "gpu")
        yield server
    finally:
        for process in reversed(server.processes):
            process.terminate()
        for process in server.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:  # the worker makes SIGTERM a SIGINT, which background jobs ignore
                process.kill()


@pytest.fixture
def parameters(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    """A run of seconds in place of the example, published to a registry of the test's own."""
    return {
        "data": {"path": str(write_jsonl(tmp_path / "rows.jsonl", make_rows(40)))},
        "model": {"base": str(tiny_model)},
        "training": {"max_steps": 2, "lora_r": 4},
        "evaluation": {"max_new_tokens": 4},
        "publishing": {"registry": str(tmp_path / "registry")},
    }


def test_the_schedule_plans_runs(deployed: Deployed) -> None:
    nightly = deployed.api("/deployments/name/retrain/nightly")
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 3 * * *"
    runs = wait_for(
        lambda: deployed.api("/flow_runs/filter", {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}),
        60,
        "nothing was scheduled",
    )
    assert {run["deployment_id"] for run in runs} == {nightly["id"]}


def test_both_deployments_are_the_example(deployed: Deployed) -> None:
    from flows.config_file import load
    from tasks.config import GROUPS

    example = load(ROOT / "examples/dialogue-summary.yaml", {})
    for name in ("nightly", "on-demand"):
        parameters = deployed.api(f"/deployments/name/retrain/{name}")["parameters"]
        assert {n: g.model_validate(parameters.get(n, {})) for n, g in GROUPS.items()} == example


def test_a_triggered_run_publishes_and_is_reused(
    deployed: Deployed, parameters: dict[str, Any], tmp_path: Path
) -> None:
    run = deployed.trigger(parameters)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    assert (tmp_path / "registry" / "adapter" / "v0001" / "adapter_model.safetensors").exists()
    artifacts = deployed.api("/artifacts/filter", {"artifacts": {"key": {"any_": ["retrain-adapter"]}}})
    assert "| train | ran |" in artifacts[0]["data"]

    again = deployed.trigger(parameters)

    def states() -> list[str]:
        tasks = deployed.api("/task_runs/filter", {"flow_runs": {"id": {"any_": [again["id"]]}}})
        return [task["state_name"] for task in tasks]

    # the server writes task runs down a moment after the run has ended
    wait_for(lambda: states() == ["Cached"] * 6, 30, f"not every stage was reused: {states()}")


def test_the_result_can_be_read(deployed: Deployed, parameters: dict[str, Any]) -> None:
    run = deployed.trigger(parameters)
    code = (
        "from prefect.client.orchestration import get_client\n"
        f"run = get_client(sync_client=True).read_flow_run('{run['id']}')\n"
        "print(run.state.result()['published']['version'])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], env=deployed.environment, capture_output=True, text=True, cwd=ROOT
    )
    assert shown.stdout.strip().startswith("v000"), shown.stderr


@pytest.mark.parametrize(
    ("group", "value"), [("training", {"lora_r": 0}), ("training", {"lr": 1}), ("formatting", {"style": "prose"})]
)
def test_a_wrong_field_is_refused_when_it_is_triggered(deployed: Deployed, group: str, value: dict[str, Any]) -> None:
    refused = deployed.prefect("deployment", "run", "retrain/on-demand", "--params", json.dumps({group: value}))
    assert refused.returncode != 0
    assert next(iter(value)) in refused.stdout + refused.stderr or str(value) in refused.stdout + refused.stderr


def test_a_mistake_in_the_data_is_one_sentence_in_the_ui(deployed: Deployed, parameters: dict[str, Any]) -> None:
    run = deployed.trigger(parameters | {"data": {"path": "/nowhere/rows.jsonl"}})
    assert run["state_type"] == "FAILED"
    assert "/nowhere/rows.jsonl does not exist" in run["state"]["message"]
    logs = deployed.api("/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    assert not any("Traceback" in line["message"] for line in logs)


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium, as .ci/run installs it")
def test_the_form_shows_every_group(deployed: Deployed, tmp_path: Path) -> None:
    deployment = deployed.api("/deployments/name/retrain/on-demand")
    page = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            f"{deployed.url}/deployments/deployment/{deployment['id']}/run",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    for text in ("Quantization, LoRA and optimization", "Peak learning rate", "How a row becomes a prompt"):
        assert text in page
