"""A Prefect server and a worker on loopback, by the commands that deployments/prefect.yaml tells."""

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import psutil

from tests.documented import DEPLOYMENT, ROOT, commands

PREFECT = str(Path(sys.executable).with_name("prefect"))
COMMAND = str(Path(sys.executable).with_name("qlora-flow"))
"""Those of `.venv/bin`, whatever this environment is called."""


class Webhook(BaseHTTPRequestHandler):
    """What automations send to people; `said` has the texts."""

    said: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.said.append(json.loads(body)["text"])
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Served:
    """`qlora-flow serve`: a server with the deployments and a worker, and the environment that reaches it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.url = f"http://127.0.0.1:{self.port}"
        self.webhook = ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
        threading.Thread(target=self.webhook.serve_forever, daemon=True).start()
        self.store = {  # in place of the one in the working tree
            "QLORA_FLOW_STORE": str(folder / "store"),
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(folder / "store" / "results"),
        }
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"},
            "PREFECT_HOME": str(folder / "home"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            "QLORA_FLOW_WEBHOOK": f"http://127.0.0.1:{self.webhook.server_port}",
        }

    def start(self) -> None:
        """Run the commands of deployments/prefect.yaml, and cancel the run that they trigger."""
        lines = [shlex.split(line) for line in commands(DEPLOYMENT) if line.startswith(".venv/bin/")]
        assert lines[0] == [".venv/bin/qlora-flow", "serve"]
        log = (self.folder / "serve.log").open("wb")
        self.process = subprocess.Popen(
            [COMMAND, "serve", "--port", str(self.port)],
            env=self.environment | self.store,
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )
        wait_for(lambda: "Prefect UI: " in self.said() or self.process.poll() is not None, "it does not come up")
        assert self.process.poll() is None, self.said()
        self.environment |= {
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_API_AUTH_STRING": (self.folder / "store" / "prefect.secret").read_text(),
        }
        self.worker = next(
            child for child in psutil.Process(self.process.pid).children() if "worker" in child.cmdline()
        )
        self.worker.suspend()
        done = self.prefect(*lines[1][1:])
        assert done.returncode == 0, done.stdout + done.stderr
        deployment = self.api("/deployments/name/retrain/on-demand")["id"]
        (triggered,) = self.api("/flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
        assert triggered["parameters"]["training"] == {"learning_rate": 0.0001}
        cancelled = {"state": {"type": "CANCELLED"}, "force": True}  # it would take minutes
        assert self.api(f"/flow_runs/{triggered['id']}/set_state", cancelled)["status"] == "ACCEPT"
        self.worker.resume()

    def said(self) -> str:
        return (self.folder / "serve.log").read_text()

    def end(self) -> None:
        """As Ctrl-C does; nothing is left behind."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        try:
            assert self.process.wait(300) == 0, self.said()
            assert psutil.wait_procs(below, timeout=60)[1] == []
        finally:
            for process in below:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            self.process.kill()
            self.webhook.shutdown()

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
