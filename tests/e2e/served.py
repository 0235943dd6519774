"""A Prefect server and a worker on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SECRET = "what the server, its worker and every command know"
PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


class Served:
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
            "PREFECT_API_AUTH_STRING": SECRET,
            "PREFECT_SERVER_API_AUTH_STRING": SECRET,
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
            subprocess.Popen(
                [*PREFECT, *command],
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
            )
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
            {"Content-Type": "application/json", "Authorization": f"Basic {b64encode(SECRET.encode()).decode()}"},
            method="GET" if body is None else "POST",
        )
        for _ in range(10):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
            time.sleep(1)  # its database was locked, which Prefect's own client waits for as well
        raise AssertionError(f"{path}: the server's database stays locked")

    def start_run(self, parameters: dict[str, Any], **environment: str) -> str:
        """Start a run from the on-demand deployment; returns its id."""
        deployment = self.api("/deployments/name/retrain/on-demand")
        return self.api(
            f"/deployments/{deployment['id']}/create_flow_run",
            {"parameters": parameters, "job_variables": {"env": self.store | environment}},
        )["id"]

    def trigger(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Start a run from the on-demand deployment and wait for its end."""
        id = self.start_run(parameters)
        return wait_for(lambda: self.finished(id), 180, "the run did not finish")

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
