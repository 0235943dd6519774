"""What the end-to-end tests share: one server with a worker, and a run of seconds."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.served import Served, wait_for
from tests.tiny import make_rows, write_jsonl


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    server = Served(tmp_path_factory.mktemp("server"))
    try:
        server.start("server", "start", "--host", "127.0.0.1", "--port", str(server.port))
        wait_for(lambda: server.api("/health"), 120, "the server did not start")
        assert server.prefect("work-pool", "create", "gpu", "--type", "process").returncode == 0
        done = server.prefect("deploy", "--all", "--prefect-file", "deployments/prefect.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
        made = server.prefect("automation", "create", "--from-file", "deployments/automations.yaml")
        assert made.returncode == 0, made.stdout + made.stderr
        server.start("worker", "start", "--pool", "gpu")
        yield server
    finally:
        for process in reversed(server.processes):
            process.terminate()
        for process in server.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
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
