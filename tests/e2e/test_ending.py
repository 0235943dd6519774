"""However a run under a worker ends, training ends with it: no process, no lock, and the next run goes on."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.served import Served, wait_for
from tests.faults.bench import is_free

pytestmark = pytest.mark.slow

LONG = {"lora_r": 4, "max_steps": 100_000}


def cancelled(deployed: Served, id: str, flow: psutil.Process) -> None:
    """What the button in the UI sends."""
    deployed.api(f"/flow_runs/{id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})


def killed(deployed: Served, id: str, flow: psutil.Process) -> None:
    flow.kill()


def interrupted(deployed: Served, id: str, flow: psutil.Process) -> None:
    flow.send_signal(signal.SIGINT)


def running_out_of_time(deployed: Served, id: str, flow: psutil.Process) -> None:
    """Nothing: the stage has a time limit, in which training may not have begun where the machine is busy."""


@pytest.mark.parametrize(
    ("end", "states"),
    [
        (cancelled, {"CANCELLED"}),
        (killed, {"CRASHED"}),
        (interrupted, {"CRASHED"}),
        (running_out_of_time, {"FAILED"}),
    ],
)
def test_training_ends_with_the_run(
    deployed: Served, parameters: dict[str, Any], tmp_path: Path, end: Callable[..., None], states: set[str]
) -> None:
    store = tmp_path / "store"
    limit = {"train_timeout_minutes": 0.4} if end is running_out_of_time else {}
    id = deployed.start_run(
        parameters | {"training": LONG, "execution": {"checkpoint_steps": 20, **limit}}, QLORA_FLOW_STORE=str(store)
    )
    checkpoints = "work/train-*/checkpoint-*"
    if not limit:
        wait_for(lambda: list(store.glob(checkpoints)), "training did not begin")
        trainer = next(p for p in working_on(store) if "tasks.training.worker" in p.cmdline())
        if end is cancelled:  # a bar in the UI has moved
            bar = {"artifacts": {"key": {"any_": ["progress-train"]}, "flow_run_id": {"any_": [id]}}}
            wait_for(lambda: any(a["data"] > 0 for a in deployed.api("/artifacts/filter", bar)), "no progress is seen")
        end(deployed, id, trainer.parent())
    run = wait_for(lambda: deployed.finished(id), "the server was not told")
    wait_for(lambda: not working_on(store), "a process lives on")
    assert run["state_type"] in states, run["state"]
    assert all(is_free(lock) for lock in (store / "locks").iterdir())
    assert not list(store.glob("artifacts/train-*"))
    assert limit or list(store.glob(checkpoints))  # what the next run goes on from
    assert end is killed or not list(store.glob("artifacts/.train-*"))  # the next run removes it


def test_a_run_whose_machine_is_lost_is_marked_as_crashed(
    deployed: Served, parameters: dict[str, Any], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    id = deployed.start_run(
        parameters | {"training": LONG},
        QLORA_FLOW_STORE=str(store),
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30",
    )
    trainer = wait_for(
        lambda: next((p for p in working_on(store) if "tasks.training.worker" in p.cmdline()), None), "no training"
    )
    worker = deployed.processes[-1]
    worker.send_signal(signal.SIGSTOP)  # it cannot tell the server either
    try:
        trainer.parent().kill()
        run = wait_for(lambda: deployed.finished(id), "the run is still running")
        assert run["state_type"] == "CRASHED"
        assert "sent no heartbeat" in run["state"]["message"]
    finally:
        worker.send_signal(signal.SIGCONT)


def working_on(store: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("QLORA_FLOW_STORE") == str(store):
                found.append(process)
        except psutil.Error:
            continue
    return found
