"""A worker with an address and a disk of its own trains and evaluates; the other stages stay with the first machine."""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests import s3
from tests.documented import ROOT
from tests.e2e.served import COMMAND, PREFECT, wait_for
from tests.tiny import make_rows, write_jsonl

HERE, THERE = "10.213.71.1", "10.213.71.2"


@pytest.fixture
def namespace() -> Iterator[list[str]]:
    """The command prefix that runs something at `THERE`."""
    name = f"qlora-flow-{os.getpid()}"
    inside, ours, theirs = f"ip netns exec {name}", f"qf{os.getpid()}a", f"qf{os.getpid()}b"
    steps = (
        f"ip netns add {name}",
        f"ip link add {ours} type veth peer name {theirs}",
        f"ip link set {theirs} netns {name}",
        f"ip addr add {HERE}/24 dev {ours}",
        f"ip link set {ours} up",
        f"{inside} ip addr add {THERE}/24 dev {theirs}",
        f"{inside} ip link set {theirs} up",
        f"{inside} ip link set lo up",
    )
    try:
        if not shutil.which("ip"):
            pytest.skip("there is no command ip")
        for step in steps:
            done = subprocess.run(step.split(), capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"network namespaces are not permitted here: {done.stderr.strip()}")
        yield inside.split()
    finally:
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            subprocess.run(["ip", "link", "delete", ours], capture_output=True)


@contextlib.contextmanager
def started(log: Path, command: list[str], environment: dict[str, str], folder: Path = ROOT) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=output, stderr=output)
    try:
        yield
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            with contextlib.suppress(psutil.Error):
                child.kill()
        process.wait()


@pytest.mark.slow
def test_a_worker_on_another_host_trains_and_evaluates(namespace: list[str], tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("s3fs")
    (tmp_path / "deployments.yaml").write_text(
        json.dumps(
            {
                "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}],
                "deployments": [
                    {
                        "name": "gpu",
                        "entrypoint": "flows.elsewhere:gpu_stage",
                        "work_pool": {"name": "elsewhere"},
                    }
                ],
            }
        )
    )
    shutil.copy(ROOT / "deployments/automations.yaml", tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
data: {{path: {write_jsonl(tmp_path / "rows.jsonl", make_rows(41))}}}
model: {{base: {tiny_model}}}
training: {{max_steps: 2, lora_r: 4}}
evaluation: {{max_new_tokens: 4}}
execution: {{gpu_deployment: gpu-stage/gpu}}
"""
    )
    with s3.served(HERE) as (bucket, remote):
        common = {**os.environ, **remote, "PREFECT_API_URL": f"http://{HERE}:4219/api", "QLORA_FLOW_WEBHOOK": ""}
        homes = {name: common | {"PREFECT_HOME": str(tmp_path / name / "home")} for name in ("server", "here", "there")}
        for home in homes.values():
            Path(home["PREFECT_HOME"]).mkdir(parents=True)
        for name in ("here", "there"):
            homes[name] |= {
                "QLORA_FLOW_STORE": str(tmp_path / name / "store"),
                "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(tmp_path / name / "store/results"),
                "PREFECT_WORKER_QUERY_SECONDS": "1",
            }
        server = [PREFECT, "server", "start", "--host", HERE, "--port", "4219"]
        worker = [*namespace, PREFECT, "worker", "start", "--pool", "elsewhere"]
        with contextlib.ExitStack() as stack:
            stack.enter_context(started(tmp_path / "server.log", server, homes["server"]))
            deploy = [COMMAND, "deploy", "--file", str(tmp_path / "deployments.yaml")]
            said = ""

            def deployed() -> bool:
                nonlocal said
                done = subprocess.run(deploy, cwd=ROOT, env=homes["here"], capture_output=True, text=True)
                said = done.stdout + done.stderr
                return done.returncode == 0

            wait_for(deployed, "nothing can be deployed")
            stack.enter_context(started(tmp_path / "worker.log", worker, homes["there"]))
            command = [COMMAND, "run", str(config)]
            done = subprocess.run(command, cwd=tmp_path, env=homes["here"], capture_output=True, text=True)
            said = f"{done.stdout}{done.stderr}\n{(tmp_path / 'worker.log').read_text()}"
            assert done.returncode == 0, said
    puts = [re.match(r"(\S+) PUT /bucket/folder/manifests/(\w+)", request) for request in bucket.requests]
    by = {put[2]: put[1] for put in reversed(puts) if put}  # the first: who fetches an old manifest renews it
    assert by == dict.fromkeys(("download", "format", "tokenize"), HERE) | dict.fromkeys(("train", "evaluate"), THERE)
    assert (tmp_path / "here/store/registry").exists() and not (tmp_path / "there/store/registry").exists()
