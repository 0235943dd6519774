"""The files of deployments/ as far as they can be checked without Docker, a cluster or systemd at work."""

import importlib
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import prefect
import pytest
import yaml
from docker.types import DeviceRequest
from prefect.events.schemas.automations import AutomationCore
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.utilities.templating import apply_values

from flows import deployed, flow_run
from flows.__main__ import main
from flows.commands.serve import SECRET, _secret
from flows.config_file import load
from tasks.config import SECTIONS
from tests.documented import ROOT

FOLDER = ROOT / "deployments"
EXAMPLE = "examples/dialogue-summary.yaml"
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((FOLDER / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize(
    "deployment",
    [*DEPLOYMENTS, {"entrypoint": "flows.elsewhere:gpu_stage"}],
    ids=lambda deployment: deployment["entrypoint"],
)
def test_a_deployment_names_a_flow_that_takes_its_parameters_and_ends_when_it_is_not_wanted(
    deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = deployment["entrypoint"].split(":")
    flow = getattr(importlib.import_module(module), name)
    if given := deployment.get("parameters"):
        flow.validate_parameters(given)
    if "retrain" in deployment["entrypoint"]:
        assert deployment["concurrency_limit"]["collision_strategy"]
    monkeypatch.setattr(flow_run, "_crashed_too_often", lambda: "It has crashed twice.")
    assert flow.fn().message == "It has crashed twice."
    monkeypatch.setattr(flow_run, "_due_again", lambda: True)
    assert flow.fn().message.startswith(
        "It has crashed" if name in ("rollback", "gpu_stage") else "Skipped: this run is due again"
    )


def test_the_short_form_keeps_what_the_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    ran: dict[str, Any] = {}
    monkeypatch.setattr(deployed, "retrain", SimpleNamespace(fn=ran.update))
    form = deployed.retrain_file.parameters.properties
    shown = {group: set(about["properties"]) for group, about in form.items() if group != "configuration"}
    assert sum(map(len, shown.values())) == 10
    for group, names in shown.items():
        whole = SECTIONS[group].model_json_schema()["properties"]
        for name in names:  # an empty field must not look as if it had been given
            assert form[group]["properties"][name] == {k: v for k, v in whole[name].items() if k != "default"}
    deployed.retrain_file.fn(EXAMPLE, training={"learning_rate": 1})
    file = load(Path(EXAMPLE), {})
    changed = file["training"].model_copy(update={"learning_rate": 1.0})
    assert ran == file | {"training": changed}
    assert deployed.retrain_file.fn("nowhere.yaml").message.startswith("The configuration nowhere.yaml cannot be")


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"data": {"path": "nowhere/rows.jsonl"}}, "data.path nowhere/rows.jsonl is not in the folder"),
        ({"data": {"path": "examples/*.jsonl", "test_path": "x.csv"}}, "data.test_path x.csv is not in the folder"),
        ({"data": {"mix": [{"name": "a", "path": "a.csv"}]}}, "data.mix: a a.csv is not in the folder"),
        ({"model": {"base": "./model"}}, "model.base ./model is not in the folder"),
        ({"training": {"start_from": "./adapter"}}, "training.start_from ./adapter is not in the folder"),
        ({"configuration": "my.yaml"}, "configuration my.yaml is not in the folder"),
        ({"configuration": EXAMPLE, "data": {"path": "x.csv"}}, "data.path x.csv is not in the folder"),
        ({"folder": "configurations"}, "folder configurations is not in the folder"),
        ({"evaluation": {"watch": [{"name": "w", "path": "w.csv"}]}}, "evaluation.watch: w w.csv is not in the folder"),
        (
            {"formatting": {"prompt": "Say: {{ question }}"}},
            "Prefect takes {{ question }} in formatting for",
        ),
        ({"evaluation": {"watch": [{"name": "w", "formatting": {"prompt": "{{ q }}"}}]}}, "Prefect takes {{ q }} in"),
    ],
)
def test_a_relative_path_that_no_worker_could_find_or_a_template_is_refused(
    group: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [DEPLOYMENTS[0] | {"parameters": group}]}))
    for command in ("serve", "deploy"):
        assert main([command, "--file", str(file)]) == 2
        assert f"nightly: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "a: [", "deployments: []", "deployments: [1]", "deployments: [{name: a}]", "deployments: {a: 1}"]
)
def test_a_file_that_holds_no_deployments_is_one_sentence(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (file := tmp_path / "prefect.yaml").write_text(text)
    assert main(["serve", "--file", str(file)]) == 2
    assert f"--file: {file} is no file of deployments" in capsys.readouterr().err


def test_a_copy_without_automations_and_a_wrong_webhook_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    file = shutil.copy(FOLDER / "prefect.yaml", tmp_path)
    assert main(["deploy", "--file", file]) == 2
    assert "automations.yaml is missing; copy deployments/automations.yaml there." in capsys.readouterr().err
    monkeypatch.setenv("QLORA_FLOW_WEBHOOK", "hooks.example/secret")
    assert main(["deploy"]) == 2
    assert capsys.readouterr().err == "QLORA_FLOW_WEBHOOK takes a URL, which begins with https:// (or http://).\n"


def test_a_server_that_cannot_be_reached_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert main(["deploy"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("The Prefect server that PREFECT_API_URL names cannot be used: ") and said.count("\n") == 1


def test_a_port_that_cannot_be_used_is_one_sentence(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 0, 70_000):
            assert main(["serve", "--port", str(port)]) == 2
            assert f"--port: {port} cannot be used" in capsys.readouterr().err
    assert not store.exists()


def test_an_empty_secret_is_replaced(store: Path) -> None:
    store.mkdir()
    (store / SECRET).touch()
    file, secret = _secret()
    assert len(secret) == 64 and file.read_text() == secret and file.stat().st_mode & 0o77 == 0
    assert _secret()[1] == secret


def test_every_automation_is_one_that_prefect_takes() -> None:
    automations = yaml.safe_load((FOLDER / "automations.yaml").read_text())["automations"]
    assert len({automation["name"] for automation in automations}) == len(automations)
    for automation in automations:
        for action in automation["actions"]:
            if action["type"] == "send-notification":
                action["block_document_id"] = "00000000-0000-0000-0000-000000000000"
        AutomationCore.model_validate(automation)


def own(kind: str) -> Any:
    """Prefect's own template for a kind of work pool, which the server shows before the kind's package is installed."""
    views = Path(prefect.__file__).parent / "server/api/collections_data/views/aggregate-worker-metadata.json"
    return json.loads(views.read_text())[f"prefect-{kind}"][kind]["default_base_job_configuration"]


def holds(value: Any, wanted: Any) -> bool:
    """Whether everything in `wanted` is in `value` as well."""
    if isinstance(wanted, dict):
        return all(name in value and holds(value[name], part) for name, part in wanted.items())
    if isinstance(wanted, list):
        return all(map(holds, value, wanted))
    return bool(value == wanted)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_job_template_is_prefects_own_with_additions(kind: str) -> None:
    template = json.loads((FOLDER / f"{kind}.json").read_text())
    assert holds(template["job_configuration"], own(kind)["job_configuration"])
    variables = template["variables"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(variables["properties"])
    defaults = {name: about["default"] for name, about in variables["properties"].items() if "default" in about}
    jsonschema.Draft202012Validator.check_schema(variables)
    jsonschema.validate(defaults, variables)
    job = apply_values(template["job_configuration"], defaults)
    if kind == "docker":
        (gpu,) = job["container_create_kwargs"]["device_requests"]
        assert DeviceRequest(**gpu)["Capabilities"] == [["gpu"]]
    else:
        pod = job["job_manifest"]["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert pod["terminationGracePeriodSeconds"] > 12  # what training has to save a checkpoint
        assert pod["securityContext"]["runAsNonRoot"]
        mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {"shm": "/dev/shm", "store": "/store"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounted)


def test_the_image_is_made_of_files_that_are_there_and_runs_as_no_root() -> None:
    lines = (FOLDER / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() for name in copied)
    assert [line for line in lines if line.startswith("USER ")] == ["USER worker"]
    user = json.loads((FOLDER / "kubernetes.json").read_text())["job_configuration"]["job_manifest"]["spec"]
    assert f"--uid {user['template']['spec']['securityContext']['runAsUser']} " in "\n".join(lines)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    for unit in (FOLDER / "systemd").iterdir():
        text = unit.read_text().replace("/srv/qlora-flow/.venv", sys.prefix).replace("User=qlora-flow\n", "")
        (tmp_path / unit.name).write_text(text.replace("/srv/qlora-flow", str(ROOT)))
    units = [str(unit) for unit in tmp_path.glob("*.service")]
    assert len(units) == 2
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "qlora-flow" in line]) == (0, [])


def test_the_servers_unit_deploys_when_the_server_answers(tmp_path: Path) -> None:
    """systemd runs ExecStartPost at once, and a server takes seconds to start."""
    unit = (FOLDER / "systemd" / "qlora-flow-server.service").read_text()
    (line,) = re.findall("^ExecStartPost=(.*)", unit, re.M)
    answers_at_the_second_call = (
        f"#!/bin/sh\nmkdir {tmp_path}/once 2> /dev/null && exit 2 || touch {tmp_path}/deployed\n"
    )
    (command := tmp_path / "qlora-flow").write_text(answers_at_the_second_call)
    command.chmod(0o755)
    program, *arguments = shlex.split(line.replace("/srv/qlora-flow/.venv/bin/qlora-flow", str(command)))
    assert subprocess.run([program, *arguments], timeout=60).returncode == 0
    assert (tmp_path / "deployed").exists()
