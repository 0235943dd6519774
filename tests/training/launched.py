"""Training jobs run in several processes: what they left, and how to disturb them."""

import contextlib
import ipaddress
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
from safetensors.torch import load_file

from tasks.config import TrainingConfig
from tasks.process.child import STOPPED_EXIT, run_child
from tasks.process.failures import ChildFailed
from tasks.training import checkpoints
from tasks.training.schema import TrainingJob
from tests.conftest import run_here
from tests.training.conftest import make_token_rows, write_tokens

SETTINGS = {"lora_r": 4, "batch_size": 4, "learning_rate": 3e-3, "max_steps": 125, "compute_dtype": "float32"}
VALIDATED = {"validation_share": 0.2, "validation_steps": 25}
ROOT = Path(__file__).parents[2]


def make_job(base, folder, processes, rows=21, **settings):
    """A job in `folder` on 21 rows: epochs of five steps of four rows and one of one."""
    folders = {kind: folder / kind for kind in ("output", "checkpoints")}
    for path in folders.values():
        path.mkdir(parents=True)
    return {
        "tokens": str(write_tokens(folder / "tokens.parquet", make_token_rows(rows))),
        "model": str(base),
        "source": "tiny",
        "config": TrainingConfig(**SETTINGS | {"processes": processes} | settings).model_dump(),
        "checkpoint_steps": 2,
        "processes": processes,
        **{kind: str(path) for kind, path in folders.items()},
    }


def train_here(job, log=lambda line: None):
    """The job in one process, the tests' own."""
    run_here("tasks.training.worker", TrainingJob(**job), log)


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


def assert_goes_on(job, whole):
    """Another attempt resumes and ends with the bits of the undisturbed run."""
    said: list[str] = []
    run_child("tasks.training.distributed.launch", job, said.append)
    assert any("resuming from the checkpoint of step" in line for line in said), said
    want = adapter(whole)
    assert all(torch.equal(weight, want[name]) for name, weight in adapter(job).items())


def stop(job, who="launcher"):
    """SIGTERM for the launcher or one of its processes once a checkpoint exists; all must end after the same step."""
    file = Path(job["output"]).with_name("job.json")
    file.write_text(json.dumps(job))
    command = [sys.executable, "-m", "tasks.training.distributed.launch", str(file), str(os.getpid())]
    before = kept(job)
    launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(job, before)
    addresses = [address for process in (launcher.pid, *processes()) for address in listening(process)]
    assert addresses and all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses
    os.kill(launcher.pid if who == "launcher" else max(processes()), signal.SIGTERM)
    output, _ = launcher.communicate()
    assert launcher.returncode == STOPPED_EXIT and not processes(), output
    step = output.split("stopped on request after step ")[1].split(";")[0]
    last = checkpoints.last_valid(Path(job["checkpoints"]))
    assert last is not None and last.name == f"checkpoint-{step}", output
    assert not list(Path(job["output"]).iterdir())


def processes() -> list[int]:
    """Those that this test's launcher started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            launcher = parent(folder.name)
            ours = parent(launcher) == str(os.getpid())  # not another test run's
            if ours and b"tasks.training.distributed.launch" in Path("/proc", launcher, "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def parent(process: str) -> str:
    return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[1]


def listening(process: int) -> list[str]:
    """The addresses at which a process accepts connections."""
    links = []
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(OSError):
            links.append(str(descriptor.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in links:
                words = bytes.fromhex(local.partition(":")[0])  # in the machine's order, four bytes at a time
                found.append(b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4)))
    return [str(ipaddress.ip_address(address)) for address in found]


def kept(job) -> set[str]:
    """The names of its checkpoints."""
    return {path.name for path in Path(job["checkpoints"]).glob("checkpoint-*")}


def wait_for(job, before) -> None:
    """Until this attempt has written a checkpoint."""
    while not kept(job) - before:
        time.sleep(0.02)


@contextlib.contextmanager
def killed(job, find):
    """SIGKILL for the process that `find` returns once the attempt in the body has written a checkpoint."""

    def kill():
        wait_for(job, before)
        os.kill(find(), signal.SIGKILL)

    before, killer = kept(job), threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ChildFailed) as failure:
        yield failure
    killer.join()
    assert failure.value.transient
