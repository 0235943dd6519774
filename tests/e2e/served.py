"""A Prefect server and a worker on loopback, by the commands that deployments/prefect.yaml tells."""

import json
import shlex
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

from tests.documented import DEPLOYMENT, ROOT, commands

PREFECT = str(Path(sys.executable).with_name("prefect"))
"""The one of `.venv/bin`, whatever this environment is called."""


class Served:
    """A server with both deployments and a worker, and the environment that reaches it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        lines = commands(DEPLOYMENT)
        program = ".venv/bin/prefect "
        self.commands = [shlex.split(line) for line in lines if line.startswith(program)]
        before = [line.replace("4200", str(self.port)) for line in lines if not line.startswith(program)]
        exported = subprocess.run(
            ["bash", "-ec", "\n".join([*before, "env -0"])], cwd=folder, capture_output=True, check=True
        )
        self.environment = {
            **dict(line.split("=", 1) for line in exported.stdout.decode().split("\0") if line),
            "PWD": str(ROOT),
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        }
        self.store = {  # in place of the one in the working tree
            "QLORA_FLOW_STORE": str(folder / "store"),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(folder / "store" / "results"),
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def start_all(self) -> None:
        """Run the commands in their order, but the worker's last, and without the run that they trigger."""
        blocking = [command for command in self.commands if command[2] == "start"]
        for command in self.commands:
            if command not in blocking:
                done = self.prefect(*command[1:])
                assert done.returncode == 0, f"{shlex.join(command)}: {done.stdout}{done.stderr}"
            elif command[1] == "server":
                self.start(*command[1:])
                wait_for(lambda: self.api("/health"), "the server did not start")
        deployment = self.api("/deployments/name/retrain/on-demand")["id"]
        (triggered,) = self.api("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
        assert triggered["parameters"]["training"] == {"learning_rate": 0.0001}
        cancelled = {"state": {"type": "CANCELLED"}, "force": True}  # it would take minutes
        assert self.api(f"/flow_runs/{triggered['id']}/set_state", cancelled)["status"] == "ACCEPT"
        for command in blocking[1:]:
            self.start(*command[1:])

    def start(self, *command: str) -> None:
        log = (self.folder / f"{command[0]}.log").open("wb")
        self.processes.append(
            subprocess.Popen(
                [PREFECT, *command],
                env=self.environment,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
            )
        )

    def prefect(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([PREFECT, *command], env=self.environment, cwd=ROOT, capture_output=True, text=True)

    def api(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        secret = self.environment["PREFECT_API_AUTH_STRING"]
        request = urllib.request.Request(
            f"{self.url}/api{path}",
            data,
            {"Content-Type": "application/json", "Authorization": f"Basic {b64encode(secret.encode()).decode()}"},
            method="GET" if body is None else "POST",
        )
        for _ in range(10):
            try:
                with urllib.request.urlopen(request, timeout=300) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
            time.sleep(1)  # its database was locked, which Prefect's own client waits for as well
        raise AssertionError(f"{path}: the server's database stays locked")

    def start_run(self, parameters: dict[str, Any], name: str | None = None, **environment: str) -> str:
        """Start a run from the on-demand deployment; returns its id."""
        deployment = self.api("/deployments/name/retrain/on-demand")
        return self.api(
            f"/deployments/{deployment['id']}/create_flow_run",
            {"parameters": parameters, "job_variables": {"env": self.store | environment}}
            | ({"name": name} if name else {}),
        )["id"]

    def trigger(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Start a run from the on-demand deployment and wait for its end."""
        id = self.start_run(parameters)
        return wait_for(lambda: self.finished(id), "the run did not finish")

    def finished(self, id: str) -> dict[str, Any] | None:
        run = self.api(f"/flow_runs/{id}")
        return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def wait_for(probe: Any, complaint: str) -> Any:
    """What a probe finds, as long as a busy machine may need for it."""
    end = time.monotonic() + 600
    while time.monotonic() < end:
        try:
            if found := probe():
                return found
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(complaint)
