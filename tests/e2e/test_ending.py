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
    ("ends", "state"),
    [
        ([cancelled], "CANCELLED"),
        ([killed, killed], "FAILED"),  # a crashed run runs again, once
        ([interrupted, cancelled], "CANCELLED"),
        ([running_out_of_time], "FAILED"),
    ],
)
def test_training_ends_with_the_run(
    deployed: Served, parameters: dict[str, Any], tmp_path: Path, ends: list[Callable[..., None]], state: str
) -> None:
    store = tmp_path / "store"
    limit = {"train_timeout_minutes": 0.4} if running_out_of_time in ends else {}
    id = deployed.start_run(
        parameters | {"training": LONG, "execution": {"checkpoint_steps": 20, **limit}}, QLORA_FLOW_STORE=str(store)
    )
    checkpoints = "work/train-*/checkpoint-*"
    for end in [] if limit else ends:
        trainer = wait_for(lambda: training_on(store), "training did not begin")
        wait_for(lambda: list(store.glob(checkpoints)), "no checkpoint was saved")
        if ends == [cancelled]:  # a bar in the UI has moved
            wait_for(lambda: progress(deployed, id) > 0, "no progress is seen")
        end(deployed, id, trainer.parent())
        psutil.wait_procs([trainer], timeout=600)
    run = wait_for(lambda: (run := deployed.finished(id)) and run["state_type"] == state and run, "it goes on")
    if ends == [killed, killed]:
        assert run["state"]["message"].startswith(
            "The process of this run was lost 2 times, so it is not started again."
        )
    wait_for(lambda: not working_on(store), "a process lives on")
    assert all(is_free(lock) for lock in (store / "locks").iterdir())
    assert not list(store.glob("artifacts/train-*"))
    assert limit or list(store.glob(checkpoints))  # what the next run goes on from
    assert ends[0] is killed or not list(store.glob("artifacts/.train-*"))  # the next run removes it


def test_a_run_whose_machine_is_lost_is_marked_as_crashed_and_runs_again(
    deployed: Served, parameters: dict[str, Any], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    id = deployed.start_run(
        parameters | {"training": LONG},
        QLORA_FLOW_STORE=str(store),
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY="30",
    )
    trainer = wait_for(lambda: training_on(store), "no training")
    deployed.worker.suspend()  # it cannot tell the server either
    try:
        trainer.parent().kill()
        states = wait_for(
            lambda: "AwaitingRetry" in str(said := deployed.api(f"/flow_run_states/?flow_run_id={id}")) and said,
            "it is not run again",
        )
        assert "sent no heartbeat" in next(state["message"] for state in states if state["type"] == "CRASHED")
        cancel = {"state": {"type": "CANCELLED"}, "force": True}
        assert deployed.api(f"/flow_runs/{id}/set_state", cancel)["status"] == "ACCEPT"
    finally:
        deployed.worker.resume()


def progress(deployed: Served, id: str) -> float:
    """Percent that the bar of training shows."""
    bar = {"artifacts": {"key": {"any_": ["progress-train"]}, "flow_run_id": {"any_": [id]}}}
    return max((artifact["data"] for artifact in deployed.api("/artifacts/filter", bar)), default=0)


def training_on(store: Path) -> psutil.Process | None:
    return next((p for p in working_on(store) if "tasks.training.worker" in p.cmdline()), None)


def working_on(store: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("QLORA_FLOW_STORE") == str(store):
                found.append(process)
        except psutil.Error:
            continue
    return found
