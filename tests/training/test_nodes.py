"""Two launchers on this machine, one process each, stand for two nodes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from tasks.errors import UserError
from tasks.process.child import run_child
from tasks.process.failures import ChildFailed
from tasks.training.distributed.nodes import nodes
from tests.training.launched import ROOT, adapter, wait_for


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


def test_two_nodes_train_what_two_processes_do_also_after_one_was_lost(job, monkeypatch, second):
    lost, said = job("lost", 1), []

    def lose():
        wait_for(Path(lost["checkpoints"]))
        os.kill(its_process(second), signal.SIGKILL)

    loser = threading.Thread(target=lose)
    loser.start()
    with pytest.raises(ChildFailed, match="another process of the run is gone") as failure:
        run_child("tasks.training.distributed.launch", lost, print)
    loser.join()
    assert failure.value.transient
    run_child("tasks.training.distributed.launch", lost, said.append)
    assert any("resuming from the checkpoint of step" in line for line in said), said
    second.send_signal(signal.SIGTERM)
    output, _ = second.communicate()  # torch waits for the first node, which is gone
    assert "this attempt at training is over" in output and "the training is finished" in output, output

    monkeypatch.delenv("QLORA_FLOW_NODES")
    two = job("two", 2)
    run_child("tasks.training.distributed.launch", two, print)
    want = adapter(two)
    assert all(torch.equal(weight, want[name]) for name, weight in adapter(lost).items())


def test_a_node_that_lacks_a_file_says_so(job, second):
    wrong = job("wrong", 1)
    Path(wrong["tokens"]).unlink()
    with pytest.raises(UserError, match=r"does not see .*tokens.parquet: all nodes need the store"):
        run_child("tasks.training.distributed.launch", wrong, print)


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
