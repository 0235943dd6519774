"""A local run is the same wherever it starts, and its server obeys nobody else.

One run in hostile surroundings: a working directory whose modules have the names of those that a run imports, somebody
who answers yes to every question, proxies that lead nowhere, no home, and a server that is killed while it trains.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from flows import server
from tests.tiny import make_rows, write_jsonl

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).with_name("qlora-flow")
TRAPS = ("tasks", "flows", "uvicorn", "json", "torch", "prefect", "multiprocessing", "sitecustomize")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> SimpleNamespace:
    """The run when it is over, and what another program saw of it while it trained."""
    folder = tmp_path_factory.mktemp("elsewhere")
    for name in TRAPS:
        mark = f"open({str(folder / 'imported')!r}, 'a').write({name!r})"
        (folder / f"{name}.py").write_text(f"{mark}\nraise SystemExit(9)\n")
    write_jsonl(folder / "rows.jsonl", make_rows(40))
    (folder / "config.yaml").write_text(
        f"""
data: {{path: rows.jsonl}}
model: {{base: {tiny_model}}}
training: {{lora_r: 4, max_steps: 2, processes: 2}}
evaluation: {{max_new_tokens: 4}}
"""
    )
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PREFECT_API_URL", "PREFECT_HOME", "HF_HOME")
    }
    proxies = {"HTTP_PROXY": NOWHERE, "http_proxy": NOWHERE, "ALL_PROXY": "socks5://127.0.0.1:9"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [COMMAND, "run", "config.yaml", "--summary", "summary.json"],
            cwd=folder,
            env={**kept, **proxies, "QLORA_FLOW_STORE": str(folder / "store"), "HOME": "/proc/nowhere"},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
    try:
        assert process.stdin is not None
        process.stdin.write(b"y\n" * 99)
        process.stdin.close()
        said = (folder / "log").read_text
        while "loading the base model" not in said():
            assert process.poll() is None, said()
            time.sleep(0.2)
        below = psutil.Process(process.pid).children(recursive=True)
        server = next(child for child in below if "flows.server" in child.cmdline())
        port = next(c.laddr.port for c in server.net_connections() if c.status == psutil.CONN_LISTEN)
        seen = SimpleNamespace(
            reading=ask(port, "/flow_runs/filter", {}),
            changing=ask(port, "/flow_runs/00000000-0000-0000-0000-000000000000/set_state", {"state": {}}),
            by_another_name=ask(port, "/health", Host="attacker.example"),
            by_a_web_page=ask(port, "/health", Origin="https://attacker.example"),
            secret=server.environ()["PREFECT_SERVER_API_AUTH_STRING"],
            arguments=[argument for child in below for argument in child.cmdline()],
        )
        server.kill()
        return SimpleNamespace(folder=folder, status=process.wait(), said=said(), seen=seen)
    finally:
        process.kill()
        process.wait()


def ask(port: int, path: str, body: dict[str, Any] | None = None, **headers: str) -> tuple[int, list[str]]:
    """Status and names of the headers that somebody without the secret gets."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api{path}", data, {"Content-Type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, [name.lower() for name in answer.headers]
    except urllib.error.HTTPError as error:
        return error.code, [name.lower() for name in error.headers]


@pytest.mark.timeout(900)
def test_it_publishes_though_its_server_was_killed(run: SimpleNamespace) -> None:
    assert run.status == 0, run.said
    assert "The run's Prefect server has ended (SIGKILL) and is started again." in run.said
    published = json.loads((run.folder / "summary.json").read_text())["published"]
    assert Path(published["path"], "adapter_model.safetensors").exists()


def test_no_module_of_the_working_directory_is_imported(run: SimpleNamespace) -> None:
    imported = run.folder / "imported"
    assert not imported.exists(), imported.read_text()


def test_its_server_refuses_who_does_not_know_the_secret(run: SimpleNamespace) -> None:
    assert (run.seen.reading[0], run.seen.changing[0]) == (401, 401)


def test_the_secret_is_on_no_command_line(run: SimpleNamespace) -> None:
    assert len(run.seen.secret) > 30
    assert run.seen.arguments and not any(run.seen.secret in argument for argument in run.seen.arguments)


def test_its_server_answers_to_no_other_name_and_no_web_page(run: SimpleNamespace) -> None:
    assert run.seen.by_another_name[0] == 400
    assert run.seen.by_a_web_page[0] == 200
    assert "access-control-allow-origin" not in run.seen.by_a_web_page[1]


def test_a_second_run_of_a_process_asks_for_the_same_direct_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "inside,localhost")
    monkeypatch.setenv("no_proxy", "inside")
    for _ in range(2):
        server.reach_this_machine_directly()
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "inside,localhost,127.0.0.1"
