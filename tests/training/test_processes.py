"""Two processes on a CPU (gloo), of one machine or of two nodes, train what one does, and end as one."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from prefect.logging import disable_run_logger

from tasks.config import ExecutionConfig, TrainingConfig
from tasks.errors import UserError
from tasks.process.child import run_child
from tasks.store.artifact import produce
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef
from tasks.tokenization.schema import TOKENS
from tasks.training import task
from tasks.training.distributed.nodes import nodes
from tests.tiny import Rows
from tests.training.conftest import make_token_rows, write_tokens
from tests.training.launched import (
    ROOT,
    VALIDATED,
    adapter,
    assert_equal_within_rounding,
    assert_goes_on,
    kept,
    killed,
    processes,
    stop,
    train_here,
)

LAUNCHER = "tasks.training.distributed.launch"


@pytest.fixture(scope="module")
def two(job):
    """The undisturbed run of two processes, which save when the clock of one says so, and what it said."""
    done, said = job("two", 2, **VALIDATED) | {"checkpoint_steps": 0}, []
    run_child(
        "tests.training.own_clocks", done, said.append, hang_minutes=4
    )  # two that wait for each other say nothing
    return done, said


def test_two_processes_train_what_one_does(job, two):
    one = job("one", 1, **VALIDATED)
    train_here(one)
    done, said = two
    assert sum("training on" in line for line in said) == 1, said
    assert_equal_within_rounding(done, one)


def test_all_save_when_the_clock_of_one_says_so(two):
    assert kept(two[0])


def test_they_end_as_one_and_the_next_attempt_goes_on(job, two):
    broken = job("broken", 2, **VALIDATED)
    for who in ("launcher", "process"):
        stop(broken, who)
    with killed(broken, lambda: max(processes())) as failure:
        run_child(LAUNCHER, broken, print)
    assert "was ended by signal 9" in str(failure.value) and not processes()
    assert_goes_on(broken, two[0])


def test_all_halve_when_one_runs_out_of_memory(job):
    settings = {"batch_size": 8, "micro_batch_tokens": 48, "max_steps": 8, "rows": 24}
    calm, short = job("calm", 1, **settings), job("short", 2, **settings)
    said: list[str] = []
    train_here(calm)
    run_child("tests.training.one_short", short, said.append)
    assert any(line.startswith("out of memory in step 3: repeated") for line in said), said
    halved = [line for line in said if "tokens at once" in line and line.startswith("process ")]
    assert sorted(line[:9] for line in halved) == ["process 0", "process 1"], said
    assert len({line[9:] for line in halved}) == 1, said
    assert_equal_within_rounding(short, calm)


def test_the_stage_starts_the_launcher_whose_processes_say_a_mistake_in_one_sentence(tiny_model, store, monkeypatch):
    def write(folder):
        write_tokens(folder / TOKENS, make_token_rows(9))
        return Rows(rows=9)

    def noted(module, *arguments):
        started.append(module)
        run_child(module, *arguments)

    started: list[str] = []
    monkeypatch.setattr(task, "run_child", noted)
    tokens = produce(Identity(stage="tokenize"), write)
    config = TrainingConfig(max_steps=2, processes=2, target_modules=["query"])
    with disable_run_logger(), pytest.raises(UserError, match="no linear layer is named query"):
        task.train.fn(tokens, BaseModelRef.of(tiny_model, "tiny", ""), config, ExecutionConfig())
    assert started == [LAUNCHER]


@pytest.fixture
def environment(monkeypatch):
    """Those of the first node; what the second one has on top."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("QLORA_FLOW_NODES", "2")
    monkeypatch.setenv("QLORA_FLOW_RENDEZVOUS", f"localhost:{port}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torch's launcher does for several processes of a machine
    return {"QLORA_FLOW_NODE": "1"}


@pytest.fixture
def second(environment):
    """The second node's command, running."""
    joining = subprocess.Popen(
        [sys.executable, "-m", "tasks.training.distributed.join"],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield joining
    with contextlib.suppress(ProcessLookupError):
        os.killpg(joining.pid, signal.SIGKILL)
    joining.wait()


def its_process(joining: subprocess.Popen) -> int:
    """The one that trains."""
    children = Path(f"/proc/{joining.pid}/task/{joining.pid}/children").read_text().split()
    return next(int(child) for child in children if b"spawn_main" in Path("/proc", child, "cmdline").read_bytes())


def test_two_nodes_train_what_two_processes_do_also_after_one_was_lost(job, two, second):
    lost, said = job("lost", 1, **VALIDATED), []
    with killed(lost, lambda: its_process(second)) as failure:
        run_child(LAUNCHER, lost, print)
    assert "another process of the run is gone" in str(failure.value)
    run_child(LAUNCHER, lost, said.append)
    assert any("resuming from the checkpoint of step" in line for line in said), said
    second.send_signal(signal.SIGTERM)
    output, _ = second.communicate()  # torch waits for the first node, which is gone
    assert "this attempt at training is over" in output and "the training is finished" in output, output
    want = adapter(two[0])
    assert all(torch.equal(weight, want[name]) for name, weight in adapter(lost).items())


def test_a_node_that_lacks_a_file_says_so(job, second):
    wrong = job("wrong", 1)
    Path(wrong["tokens"]).unlink()
    with pytest.raises(UserError, match=r"does not see .*tokens.parquet: all nodes need the store"):
        run_child(LAUNCHER, wrong, print)


@pytest.mark.parametrize(
    "variables, sentence",
    [
        ({"QLORA_FLOW_NODES": "two"}, "QLORA_FLOW_NODES is 'two': it takes a whole number"),
        ({"QLORA_FLOW_NODES": "2"}, "QLORA_FLOW_RENDEZVOUS is '': 2 nodes need host:port"),
        ({"QLORA_FLOW_NODES": "2", "QLORA_FLOW_RENDEZVOUS": "a:65536"}, "'a:65536': 2 nodes need host:port"),
        ({"QLORA_FLOW_NODES": "2", "QLORA_FLOW_RENDEZVOUS": "a:1", "QLORA_FLOW_NODE": "2"}, "2 nodes are 0 to 1"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch, variables, sentence):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        nodes()
    assert sentence in str(error.value)
