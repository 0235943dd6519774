"""Two processes on a CPU (gloo) train what one does, and end as one."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_rows, write_tokens
from safetensors.torch import load_file

from tasks.child import ChildFailed, run_child
from tasks.config import TrainingConfig
from tasks.errors import UserError

SETTINGS = {"lora_r": 4, "batch_size": 4, "learning_rate": 3e-3, "epochs": 6.0, "compute_dtype": "float32"}


@pytest.fixture
def job(bases, tmp_path):
    """`job("name", processes, **settings)`: a job on 21 rows, six epochs of five steps of four rows and one of one."""

    def make(name, processes, rows=21, **settings):
        tokens = write_tokens(tmp_path / f"{name}.parquet", make_rows(rows))
        folders = {kind: tmp_path / name / kind for kind in ("output", "checkpoints")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        return {
            "tokens": str(tokens),
            "model": str(bases("llama")),
            "source": "tiny",
            "config": TrainingConfig(**SETTINGS | settings).model_dump(),
            "checkpoint_steps": 2,
            "processes": processes,
            **{kind: str(folder) for kind, folder in folders.items()},
        }

    return make


def adapter(job):
    return load_file(Path(job["output"], "adapter/adapter_model.safetensors"))


def steps(job):
    return pq.read_table(Path(job["output"], "training_log.parquet")).to_pylist()


def assert_equal_within_rounding(job, other):
    for mine, theirs in zip(steps(job), steps(other), strict=True):
        assert (mine["tokens"], mine["learnt_tokens"]) == (theirs["tokens"], theirs["learnt_tokens"])
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)
    want = adapter(other)
    for name, weight in adapter(job).items():
        torch.testing.assert_close(weight, want[name], rtol=1e-2, atol=1e-4)


@pytest.mark.timeout(900)
def test_two_processes_train_what_one_does_and_end_as_one(job):
    one, two, broken = job("one", 1), job("two", 2), job("broken", 2)
    said: list[str] = []
    run_child("tasks.training.worker", one, print)
    run_child("tasks.training.launch", two, said.append)
    assert sum("training on" in line for line in said) == 1, said
    assert_equal_within_rounding(two, one)

    killer = threading.Thread(target=kill_one, args=(Path(broken["checkpoints"]),))
    killer.start()
    with pytest.raises(ChildFailed, match="was ended by signal 9") as failure:
        run_child("tasks.training.launch", broken, print)
    killer.join()
    assert failure.value.passing and not processes()
    run_child("tasks.training.launch", broken, said.append)
    assert any("resuming from the checkpoint of step" in line for line in said), said
    want = adapter(two)
    assert all(torch.equal(weight, want[name]) for name, weight in adapter(broken).items())


def test_all_halve_when_one_runs_out_of_memory(job):
    settings = {"batch_size": 8, "micro_batch_tokens": 48, "max_steps": 8, "rows": 24}
    calm, short = job("calm", 2, **settings), job("short", 2, **settings)
    said: list[str] = []
    run_child("tasks.training.launch", calm, print)
    run_child("tests.training.one_short", short, said.append)
    assert any(line.startswith("out of memory in step 3: trying it again") for line in said), said
    halved = [line for line in said if "tokens at once" in line and line.startswith("process ")]
    assert sorted(line[:9] for line in halved) == ["process 0", "process 1"], said
    assert len({line[9:] for line in halved}) == 1, said
    assert_equal_within_rounding(short, calm)


def test_a_mistake_is_one_sentence(job):
    with pytest.raises(UserError, match="no linear layer is named query"):
        run_child("tasks.training.launch", job("wrong", 2, target_modules=["query"]), print)


def processes() -> list[int]:
    """Those that the launcher started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if b"tasks.training.launch" in Path("/proc", parent, "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def kill_one(checkpoints: Path) -> None:
    """SIGKILL for one of them once a checkpoint exists."""
    while not list(checkpoints.glob("checkpoint-*")):
        time.sleep(0.02)
    os.kill(max(processes()), signal.SIGKILL)
