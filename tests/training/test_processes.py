"""Two processes on a CPU (gloo) train what one does, and end as one."""

import threading
from pathlib import Path

import pytest
import torch
from prefect.logging import disable_run_logger

from tasks.config import ExecutionConfig, TrainingConfig
from tasks.errors import UserError
from tasks.process.child import run_child
from tasks.process.failures import ChildFailed
from tasks.store.artifact import produce
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef
from tasks.tokenization.schema import TOKENS
from tasks.training.facts import TrainingFacts
from tasks.training.task import train
from tests.tiny import Rows
from tests.training.conftest import make_token_rows, write_tokens
from tests.training.launched import adapter, assert_equal_within_rounding, assert_goes_on, kill_one, processes, stop


@pytest.fixture(scope="module")
def two(job):
    """The undisturbed run of two processes, and what it said."""
    done, said = job("two", 2), []
    run_child("tasks.training.distributed.launch", done, said.append)
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
        run_child("tasks.training.distributed.launch", broken, print)
    killer.join()
    assert failure.value.transient and not processes()
    assert_goes_on(broken, two[0])


@pytest.mark.parametrize("who", ["launcher", "process"])
def test_all_stop_on_sigterm_after_the_same_step(job, two, who):
    stopped = job(f"stopped {who}", 2)
    stop(stopped, who)
    if who == "launcher":
        assert_goes_on(stopped, two[0])


def test_all_halve_when_one_runs_out_of_memory(job):
    settings = {"batch_size": 8, "micro_batch_tokens": 48, "max_steps": 8, "rows": 24}
    calm, short = job("calm", 2, **settings), job("short", 2, **settings)
    said: list[str] = []
    run_child("tasks.training.distributed.launch", calm, print)
    run_child("tests.training.one_short", short, said.append)
    assert any(line.startswith("out of memory in step 3: repeated") for line in said), said
    halved = [line for line in said if "tokens at once" in line and line.startswith("process ")]
    assert sorted(line[:9] for line in halved) == ["process 0", "process 1"], said
    assert len({line[9:] for line in halved}) == 1, said
    assert_equal_within_rounding(short, calm)


@pytest.mark.timeout(900)
def test_all_save_when_the_clock_of_one_says_so(job, two):
    done = job("own clocks", 2) | {"checkpoint_steps": 0}
    run_child("tests.training.own_clocks", done, print, hang_minutes=4)  # two that wait for each other say nothing
    assert list(Path(done["checkpoints"]).glob("checkpoint-*"))
    want = adapter(two[0])
    assert all(torch.equal(weight, want[name]) for name, weight in adapter(done).items())


def test_a_mistake_is_one_sentence(job):
    with pytest.raises(UserError, match="no linear layer is named query"):
        run_child("tasks.training.distributed.launch", job("wrong", 2, target_modules=["query"]), print)


def test_the_stage_starts_the_launcher_for_several_processes(tiny_model, store):
    def write(folder):
        write_tokens(folder / TOKENS, make_token_rows(9))
        return Rows(rows=9)

    tokens = produce(Identity(stage="tokenize"), write)
    config = TrainingConfig(lora_r=4, batch_size=4, max_steps=2, processes=2)
    with disable_run_logger():
        trained = train.fn(tokens, BaseModelRef.of(tiny_model, "tiny", ""), config, ExecutionConfig())
    assert trained.facts(TrainingFacts).steps == 2
