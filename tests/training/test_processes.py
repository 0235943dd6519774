"""Two processes on a CPU (gloo) train what one does, and end as one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import make_rows, write_tokens
from safetensors.torch import load_file

from tasks.child import GRACE_SECONDS, STOPPED_EXIT, ChildFailed, run_child
from tasks.config import TrainingConfig
from tasks.errors import UserError
from tasks.training import checkpoints

SETTINGS = {"lora_r": 4, "batch_size": 4, "learning_rate": 3e-3, "max_steps": 100, "compute_dtype": "float32"}
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def job(bases, tmp_path_factory):
    """`job("name", processes, **settings)`: a job on 21 rows, epochs of five steps of four rows and one of one."""
    tmp_path = tmp_path_factory.mktemp("jobs")

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


@pytest.fixture(scope="module")
def two(job):
    """The undisturbed run of two processes, and what it said."""
    done, said = job("two", 2), []
    run_child("tasks.training.launch", done, said.append)
    return done, said


def test_two_processes_train_what_one_does(job, two):
    one = job("one", 1)
    run_child("tasks.training.worker", one, print)
    done, said = two
    assert sum("training on" in line for line in said) == 1, said
    assert_equal_within_rounding(done, one)


def test_they_end_as_one_and_the_next_attempt_goes_on(job, two):
    broken = job("broken", 2)
    killer = threading.Thread(target=kill_one, args=(Path(broken["checkpoints"]),))
    killer.start()
    with pytest.raises(ChildFailed, match="was ended by signal 9") as failure:
        run_child("tasks.training.launch", broken, print)
    killer.join()
    assert failure.value.passing and not processes()
    assert_goes_on(broken, two[0])


@pytest.mark.parametrize("who", ["launcher", "process"])
def test_all_stop_on_sigterm_after_the_same_step(job, two, who):
    stopped = job(f"stopped {who}", 2)
    file = Path(stopped["output"]).with_name("job.json")
    file.write_text(json.dumps(stopped))
    command = [sys.executable, "-m", "tasks.training.launch", str(file), str(os.getpid())]
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(Path(stopped["checkpoints"]))
    os.kill(launcher.pid if who == "launcher" else max(processes()), signal.SIGTERM)
    output, _ = launcher.communicate(timeout=GRACE_SECONDS)
    assert launcher.returncode == STOPPED_EXIT and not processes(), output
    step = output.split("stopped on request after step ")[1].split(";")[0]
    kept = checkpoints.last_valid(Path(stopped["checkpoints"]))
    assert kept is not None and kept.name == f"checkpoint-{step}", output
    assert not list(Path(stopped["output"]).iterdir())
    if who == "launcher":
        assert_goes_on(stopped, two[0])


def assert_goes_on(job, whole):
    """Another attempt resumes and ends with the bits of the undisturbed run."""
    said: list[str] = []
    run_child("tasks.training.launch", job, said.append)
    assert any("resuming from the checkpoint of step" in line for line in said), said
    want = adapter(whole)
    assert all(torch.equal(weight, want[name]) for name, weight in adapter(job).items())


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
    """Those that this test's launcher started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            launcher = parent(folder.name)
            ours = parent(launcher) == str(os.getpid())  # not another test run's
            if ours and b"tasks.training.launch" in Path("/proc", launcher, "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def parent(process: str) -> str:
    return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[1]


def kill_one(folder: Path) -> None:
    """SIGKILL for one of them once a checkpoint exists."""
    wait_for(folder)
    os.kill(max(processes()), signal.SIGKILL)


def wait_for(folder: Path) -> None:
    while not list(folder.glob("checkpoint-*")):
        time.sleep(0.02)
