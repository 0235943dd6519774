"""Failures inside a run: what passes is tried again, training goes on where it was, mistakes are not repeated."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect import flow

from flows.config_file import load
from flows.retrain import retrain
from flows.stages import limited
from tasks.config import ModelConfig
from tasks.download import identity as download_identity
from tasks.download import task as download_room
from tasks.download.task import ask_hub
from tasks.errors import UserError
from tasks.store.artifact import discard
from tests.faults.bench import is_free
from tests.tiny import make_rows, write_jsonl

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def groups(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    rows = make_rows(39)  # no other file's: Prefect remembers results for all tests
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    file = tmp_path / "config.yaml"
    file.write_text(
        f"""
data: {{path: {data}}}
model: {{base: {tiny_model}}}
training: {{lora_r: 4, max_steps: 2}}
evaluation: {{max_new_tokens: 4}}
execution: {{retry_seconds: 0}}
"""
    )
    return dict(load(file, {}))


def failing(times: int, error: Exception, then: Any) -> Any:
    calls = []

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) <= times:
            raise error
        return then(*arguments)

    call.calls = calls  # type: ignore[attr-defined]
    return call


def test_a_network_failure_is_tried_again_and_a_mistake_is_not(
    groups: dict, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = failing(9, UserError("model.base: nothing there"), None)
    fetch = failing(2, httpx.ConnectError("no route"), refused)
    monkeypatch.setattr(download_room, "fetch_model", fetch)
    with pytest.raises(UserError, match="nothing there"):
        retrain(**groups)
    assert (len(fetch.calls), len(refused.calls)) == (3, 1)


def test_a_branch_is_asked_for_again_when_the_network_fails(
    groups: dict, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = failing(2, httpx.ConnectError("no route"), lambda *_: "0" * 40)
    monkeypatch.setattr(download_identity, "_commit", commit)
    model = ModelConfig(base="owner/name", revision="main")

    @flow
    def asks() -> Any:
        return limited(ask_hub, groups["execution"])(groups["data"], model)

    assert asks() == (groups["data"], model.model_copy(update={"revision": "0" * 40}))
    assert len(commit.calls) == 3


def adapter_of(summary: dict[str, Any]) -> str:
    file = Path(summary["stages"]["train"]["path"]) / "adapter" / "adapter_model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def kill_training(number: signal.Signals, store: Path, over: threading.Event) -> tuple[threading.Thread, list[int]]:
    """Send a signal to the training child once it has written a checkpoint; give up when `over` is set.

    Returns what it sent, too.
    """

    def watch() -> None:
        while not list(store.glob("work/train-*/checkpoint-*")):
            if over.wait(0.02):
                return
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "tasks.training.worker" in process.cmdline():
                    os.kill(process.pid, number)
                    killed.append(number)

    killed: list[int] = []
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread, killed


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Prefect keeps its database, which takes seconds to make."""
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_an_ended_command_leaves_no_process_and_no_lock(
    groups: dict, store: Path, tmp_path: Path, home: Path, number: signal.Signals, status: int
) -> None:
    environment = {**os.environ, "PREFECT_HOME": str(home)}  # no server there: the command starts its own
    environment.pop("PREFECT_API_URL", None)
    config = str(tmp_path / "config.yaml")
    terminal, its_end = os.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "flows", "run", config, "--training.max_steps", "100000"],
        cwd=ROOT,
        env=environment | {"TERM": "xterm", "COLUMNS": "200"},
        stdout=its_end,
        stderr=its_end,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    os.close(its_end)
    said = b""
    while b"/100000" not in said:  # the bar of training
        said += os.read(terminal, 1 << 16)
    below = psutil.Process(run.pid).children(recursive=True)
    assert len(below) >= 2  # the trainer and the server
    run.send_signal(number)
    with contextlib.suppress(OSError):  # which says that nobody can write to it any more
        while more := os.read(terminal, 1 << 16):
            said += more
    os.close(terminal)
    assert run.wait() == status
    assert psutil.wait_procs(below, timeout=600)[1] == []
    assert b"Traceback" not in said, said
    assert said.rfind(b"\x1b[?25h") > said.rfind(b"\x1b[?25l"), "the cursor is hidden"
    held = [lock for lock in (store / "locks").iterdir() if not is_free(lock)]
    half = [path for path in (store / "artifacts").glob(".train-*") if number != signal.SIGKILL]
    assert (held, half) == ([], [])
    assert len(list((store / "work").glob("train-*/checkpoint-*"))) == 1  # what it goes on from


def test_killed_training_goes_on_and_ends_with_the_same_adapter(groups: dict, store: Path) -> None:
    groups["training"] = groups["training"].model_copy(update={"max_steps": 120})
    groups["execution"] = groups["execution"].model_copy(update={"checkpoint_steps": 5})
    first = retrain(**groups)
    undisturbed = adapter_of(first)
    for number in (signal.SIGTERM, signal.SIGKILL):
        discard(Path(first["stages"]["train"]["path"]).name)
        over = threading.Event()
        killer, killed = kill_training(number, store, over)
        disturbed = retrain(**groups)
        over.set()
        killer.join()
        assert killed == [number], "training ended before it was killed"
        assert adapter_of(disturbed) == undisturbed
        assert {name: disturbed["stages"][name]["outcome"] for name in ("train", "evaluate")} == {
            "train": "ran",
            "evaluate": "reused",
        }
        assert not any((store / "work").iterdir())
