"""Two processes on a CPU (gloo) that divide the base train what one with the whole base does."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaConfig

from tasks.config import TrainingConfig
from tasks.errors import UserError
from tasks.model import sharding
from tasks.model.collectives import Collectives
from tasks.process.child import run_child
from tasks.process.failures import ChildFailed
from tasks.training import memory
from tasks.training.compute_plan import should_shard
from tests.training.launched import (
    VALIDATED,
    assert_equal_within_rounding,
    assert_goes_on,
    steps,
    stop,
    train_here,
)

DIVIDED = {"sharding": "always", "micro_batch_tokens": 32, **VALIDATED}
PACKED_BYTES = 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128) // 2  # 4 bits a value of two layers


@pytest.fixture(scope="module")
def one(job):
    """What one process with the whole base does."""
    done = job("one", 1, **VALIDATED)
    train_here(done)
    return done


@pytest.fixture(scope="module")
def two(job):
    """The undisturbed run of two processes with a part each, and what it said."""
    done, said = job("two", 2, **DIVIDED), []
    run_child("tests.training.divided", done, said.append)
    return done, said


def test_each_holds_its_part_and_the_result_is_the_same(one, two):
    done, said = two
    held = sorted(line for line in said if line.endswith("packed bytes"))
    assert held == [f"process {rank} holds {PACKED_BYTES // 2} packed bytes" for rank in (0, 1)], said
    assert_equal_within_rounding(done, one)
    losses = [[row["validation_loss"] for row in steps(run) if row["validation_loss"]] for run in (done, one)]
    assert len(losses[0]) == 5 and losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_all_stop_on_sigterm_and_the_next_attempt_goes_on(job, two):
    stopped = job("stopped", 2, **DIVIDED)
    stop(stopped)
    assert_goes_on(stopped, two[0])


def test_out_of_memory_ends_the_attempt_and_the_next_one_takes_fewer_tokens(job, one):
    short = {**job("short", 2, **DIVIDED, speed="lean"), "short_in_step": 4}
    with pytest.raises(ChildFailed, match="process 1, step 4: out of memory; the next") as failure:
        run_child("tests.training.divided", short, print)
    assert failure.value.transient
    said: list[str] = []
    run_child("tests.training.divided", short, said.append)
    assert any("resuming from the checkpoint of step 2" in line for line in said), said
    assert json.loads(Path(short["output"], "training.json").read_text())["micro_batch_tokens"] <= 16
    assert_equal_within_rounding(short, one)


def test_a_base_is_divided_when_it_does_not_fit(tmp_path):
    llama8, llama70 = tmp_path / "8", tmp_path / "70"
    LlamaConfig(intermediate_size=14336, num_key_value_heads=8, vocab_size=128_256).save_pretrained(llama8)
    LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128_256,
    ).save_pretrained(llama70)
    fits = memory.base_fits
    config, plain = TrainingConfig(), TrainingConfig(quantization="none")
    assert fits(llama8, config, 2048, 24 * 10**9) and not fits(llama8, plain, 2048, 16 * 10**9)
    assert fits(llama70, config, 2048, 80 * 10**9) and not fits(llama70, config, 2048, 48 * 10**9)
    assert not fits(llama70, plain, 2048, 140 * 10**9)
    whole = TrainingConfig(modules_to_save=["embed_tokens", "lm_head"])  # 17 GB more
    assert fits(llama8, whole, 2048, 40 * 10**9) and not fits(llama8, whole, 2048, 24 * 10**9)


def test_packed_values_are_divided_as_floating_point():
    packed = torch.arange(256, dtype=torch.uint8).unsqueeze(-1)
    held = sharding._Frozen(packed, None).weight
    assert held.is_floating_point() and torch.equal(held.view(torch.uint8), packed.flatten())


def test_nothing_to_divide_is_refused():
    with pytest.raises(ValidationError, match=r"set training\.processes to 2 or more"):
        TrainingConfig(sharding="always")
    with pytest.raises(ValidationError, match=r"set training\.dora to false"):
        TrainingConfig(sharding="always", processes=2, dora=True)
    one_process = TrainingConfig(sharding="always", processes=0)  # on a machine with one GPU
    with pytest.raises(UserError, match="this run has one"):
        should_shard(Path(), one_process, None, torch.device("cpu"), Collectives())
