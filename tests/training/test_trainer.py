"""The trainer's promises: one result per configuration, whatever interrupts it, and no training on nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tasks.errors import UserError
from tasks.model.activation_checkpointing import decoder_layers
from tasks.training import checkpoints, worker
from tasks.training.data import read_rows
from tasks.training.step import Interrupted
from tasks.training.step_metrics import PendingStep, TrainingFailed
from tests.training.conftest import make_token_rows, write_tokens
from tests.training.launched import ROOT, steps, train_here

CPU = torch.device("cpu")


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def assert_identical(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture
def compiler_stance():
    """What a failed compilation sets for the whole process is undone after the test."""
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()


def test_training_goes_on_uncompiled_when_the_compiler_fails(build, compiler_stance):
    def broken(graph, inputs):
        raise AssertionError("the partitioner has a bug")

    plain = build("plain", lora_dropout=0.2)
    plain.run()
    compiled = build("compiled", lora_dropout=0.2)
    for layer in decoder_layers(compiled.step.model):
        layer.compile(backend=broken)
    compiled.run()
    assert_identical(weights(plain), weights(compiled))
    assert [line for line in compiled.said if "torch.compile failed" in line and "the partitioner has a bug" in line]


def test_learns_and_is_bit_identical_when_repeated(build):
    first, second = build("a"), build("b")
    first.run(), second.run()
    losses = [row.loss for row in first.step.metrics.rows]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.1
    assert_identical(weights(first), weights(second))
    assert all(p.dtype == torch.float32 for p in weights(first).values())


@pytest.mark.parametrize(
    "settings", [{}, {"lora_dropout": 0.2, "speed": "lean", "dora": True}, {"dora": True, "start": "first"}]
)
def test_interrupted_run_resumes_to_the_same_bits(build, monkeypatch, settings, tmp_path):
    if "start" in settings:
        first = build("first", dora=True)
        first.run()
        settings["start"] = str(tmp_path / "adapter")
        first.step.model.save_pretrained(settings["start"])
    whole = build("whole", **settings)
    if "start" in settings:
        assert_identical(weights(first), weights(whole))
    whole.run()
    monkeypatch.setattr(checkpoints, "MINUTES", 0.0)  # after every step
    broken = build("broken", **settings)
    accumulate = broken.step._accumulate

    def interrupted(*arguments):
        result = accumulate(*arguments)
        if broken.state.global_step == 7:  # in the second epoch, in the middle of a step
            broken.step.request_stop()
        return result

    monkeypatch.setattr(broken.step, "_accumulate", interrupted)
    with pytest.raises(Interrupted):
        broken.run()
    folder = Path(broken.args.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-6", "checkpoint-7"]
    (folder / "checkpoint-7" / "optimizer.pt").write_bytes(b"half written")  # the next best one must do
    resumed = build("broken", **settings)
    resumed.run()
    assert resumed.said[0].startswith("checkpoint-7 is damaged and removed: ")
    assert "optimizer.pt has 12 bytes" in resumed.said[0]
    assert resumed.said[1] == "resuming from the checkpoint of step 6"
    assert_identical(weights(whole), weights(resumed))
    assert [(r.step, r.loss, r.grad_norm) for r in whole.step.metrics.rows] == [
        (r.step, r.loss, r.grad_norm) for r in resumed.step.metrics.rows
    ]


def test_a_stop_while_numbers_are_read_loses_none_of_them(build, monkeypatch):
    whole, broken = build("whole"), build("broken")
    whole.run()
    read = PendingStep.read

    def interrupted(self, *scaled):
        if self.step == 5:
            broken.step.request_stop()
        return read(self, *scaled)

    monkeypatch.setattr(PendingStep, "read", interrupted)
    with pytest.raises(Interrupted):
        broken.run()
    monkeypatch.undo()
    assert [row.step for row in broken.step.metrics.rows] == [1, 2, 3, 4, 5]
    resumed = build("broken")
    resumed.run()
    assert [(r.step, r.loss) for r in resumed.step.metrics.rows] == [(r.step, r.loss) for r in whole.step.metrics.rows]


def test_micro_batches_do_not_change_the_result(build):
    runs = [build(str(tokens), micro_batch_tokens=tokens, compute_dtype="float32") for tokens in (16, 48, 8192)]
    for run in runs:
        run.run()
    for run in runs[1:]:
        for mine, theirs in zip(run.step.metrics.rows, runs[0].step.metrics.rows, strict=True):
            assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)
            assert mine.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)
            assert (mine.tokens, mine.learnt_tokens) == (theirs.tokens, theirs.learnt_tokens)


def test_a_run_of_one_step_learns(build):
    run = build(batch_size=22, epochs=1)
    run.run()
    assert [row.learning_rate for row in run.step.metrics.rows] == [3e-3]
    assert all(w.norm() > 0 for name, w in weights(run).items() if "lora_B" in name)


def test_seconds_belong_to_their_step(build, monkeypatch):
    run = build(max_steps=5, epochs=1)
    forward = run.model.get_base_model().forward

    def slow(**batch):
        time.sleep(3.0 if run.state.global_step == 2 else 0.0)  # far above a step on any busy machine
        return forward(**batch)

    monkeypatch.setattr(run.model.get_base_model(), "forward", slow)
    run.run()
    seconds = [row.seconds for row in run.step.metrics.rows]
    assert seconds[2] > 3.0 > max(seconds[1], seconds[3], seconds[4]), seconds
    assert sum(seconds) == pytest.approx(run.step.metrics.totals()["seconds"])


def test_out_of_memory_halves_and_goes_on(build, monkeypatch):
    calm = build("calm", compute_dtype="float32")
    calm.run()
    run = build("tight", compute_dtype="float32")
    forward = run.model.get_base_model().forward

    def limited(**batch):
        if batch["input_ids"].shape[1] > 40:
            raise torch.OutOfMemoryError("no room")
        return forward(**batch)

    monkeypatch.setattr(run.model.get_base_model(), "forward", limited)
    run.run()
    assert 1 <= run.step.halvings <= 2 and run.step.micro_batch_tokens <= 40
    assert any("out of memory in step 1" in line for line in run.said)
    for mine, theirs in zip(run.step.metrics.rows, calm.step.metrics.rows, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, rel=1e-4)


def test_row_that_never_fits_is_named(build, monkeypatch):
    run = build()

    def never(**_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(run.model.get_base_model(), "forward", never)
    with pytest.raises(UserError, match=r"a single row of \d+ tokens does not fit"):
        run.run()


@pytest.mark.parametrize("factor, message", [(0.0, "step 4: the gradient is zero"), (float("nan"), "step 4: loss nan")])
def test_step_that_teaches_nothing_stops_the_run(build, monkeypatch, factor, message):
    monkeypatch.setattr(checkpoints, "MINUTES", 0.0)
    run = build()
    forward = run.model.get_base_model().forward
    monkeypatch.setattr(
        run.model.get_base_model(),
        "forward",
        lambda **batch: forward(**batch) * (factor if run.state.global_step == 3 else 1.0),
    )
    with pytest.raises(TrainingFailed, match=message):
        run.run()
    kept = checkpoints.last_valid(Path(run.args.output_dir))
    assert kept is not None and kept.name == "checkpoint-3"


def test_checkpoints_by_steps_keep_the_last_two_that_are_valid(build):
    whole = build("whole")
    whole.run()
    stopped = build("stopped")
    stopped.step.schedule.steps = 3
    accumulate = stopped.step._accumulate

    def interrupted(*arguments):
        if stopped.state.global_step == 10:
            raise KeyboardInterrupt  # as a kill would, without a last checkpoint
        return accumulate(*arguments)

    stopped.step._accumulate = interrupted
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    folder = Path(stopped.args.output_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-6", "checkpoint-9"]
    (folder / "checkpoint-9" / "adapter_model.safetensors").write_bytes(b"")
    resumed = build("stopped")
    resumed.step.schedule.steps = 4
    resumed.run()
    assert "checkpoint-9 is damaged" in resumed.said[0] and resumed.said[1] == "resuming from the checkpoint of step 6"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-6", "checkpoint-8"]
    assert_identical(weights(whole), weights(resumed))


def test_nothing_to_train_on(tmp_path):
    rows = make_token_rows(3)
    held_out = [{**row, "split": "test"} for row in rows]
    with pytest.raises(UserError, match="there is no training row: all rows are in the test split"):
        read_rows(write_tokens(tmp_path / "held_out.parquet", held_out))
    masked = [{**row, "labels": [-100] * len(row["input_ids"])} for row in rows]
    with pytest.raises(UserError, match="all labels are masked"):
        read_rows(write_tokens(tmp_path / "masked.parquet", masked + held_out))
    assert len(read_rows(write_tokens(tmp_path / "good.parquet", rows + held_out))[0]) == 3


@pytest.mark.parametrize("visible, one", [(None, "0"), ("", ""), ("2,0", "2"), ("GPU-1f,GPU-2e", "GPU-1f")])
def test_a_lone_process_sees_one_gpu_and_no_launcher(monkeypatch, visible, one):
    for name in ("CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES") if visible is None else monkeypatch.setenv(
        "CUDA_VISIBLE_DEVICES", visible
    )
    seen = {}
    monkeypatch.setattr(worker, "train", lambda job: seen.update(os.environ))
    worker.train_in_one_process({})
    assert seen["CUDA_VISIBLE_DEVICES"] == one and not seen.keys() & {"WORLD_SIZE", "RANK", "LOCAL_RANK"}


@pytest.mark.slow
def test_child_stops_on_sigterm_and_the_next_attempt_finishes(job):
    stopped = job("stopped", 1, max_steps=20_000) | {"checkpoint_steps": 0}
    file = Path(stopped["output"]).with_name("job.json")
    file.write_text(json.dumps(stopped))
    command = [sys.executable, "-m", "tasks.training.worker", str(file), str(os.getpid())]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert child.stdout is not None
    lines = []
    for line in child.stdout:
        lines.append(line)
        if line.startswith("step "):
            break
    child.send_signal(signal.SIGTERM)
    rest = child.stdout.read()
    assert child.wait() == worker.STOPPED_EXIT, rest
    assert checkpoints.last_valid(Path(stopped["checkpoints"])) is not None, "".join(lines) + rest
    assert "Warning" not in "".join(lines) + rest
    stopped["config"]["max_steps"] = done = int(rest.split("stopped on request after step ")[1].split(";")[0]) + 2
    said: list[str] = []
    train_here(stopped, said.append)
    assert any("resuming from the checkpoint of step" in line for line in said), said
    output = Path(stopped["output"])
    assert {path.name for path in (output / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert [row["step"] for row in steps(stopped)] == list(range(1, done + 1))
    totals = json.loads((output / "training.json").read_text())
    assert totals["steps"] == done and totals["resumed_from_step"] == done - 2 and totals["tokens"] > 0
