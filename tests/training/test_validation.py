"""Validation: an exact loss, a training that does not notice it, and the best weights in the end."""

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tasks.config import TrainingConfig
from tasks.errors import UserError
from tasks.model import base
from tasks.model.lora import refresh
from tasks.training import checkpoints
from tasks.training.data import read_rows
from tasks.training.step import Interrupted
from tasks.training.trl_adapter import PackedTrainer
from tests.training.conftest import make_token_rows, write_tokens
from tests.training.launched import train_here

CPU = torch.device("cpu")
BACK = make_token_rows(7, seed=5)


@pytest.fixture
def build(bases, tmp_path):
    """`build("name")`: a trainer on 22 rows, six steps an epoch, that validates on seven others."""

    def make(name, back=BACK, **settings):
        config = TrainingConfig(
            **{"lora_r": 4, "batch_size": 4, "learning_rate": 3e-3, "epochs": 2.0, "validation_share": 0.2, **settings}
        )
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        said: list[str] = []
        model = base.load(bases("llama"), config, CPU)
        back = Dataset.from_list(back) if back else None
        trainer = PackedTrainer(model, Dataset.from_list(make_token_rows(22)), config, folder, said.append, back)
        trainer.said = said
        return trainer

    return make


def weights(trainer):
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def mean_loss(trainer):
    total, targets = trainer.step.validation.sums(trainer.step.model, trainer.step.micro_batches, 1).tolist()
    return total / targets


def steps(trainer):
    return [(r.step, r.loss, r.grad_norm, r.validation_loss) for r in trainer.step.metrics.rows]


def test_loss_is_the_mean_over_target_tokens(bases, build):
    """Against stock transformers, row by row, on the untrained adapter, which changes nothing."""
    plain = AutoModelForCausalLM.from_pretrained(bases("llama"), dtype=torch.float32)
    total, targets = 0.0, 0
    for row in BACK:
        labels = torch.tensor(row["labels"])[1:]
        logits = plain(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        targets += int((labels != -100).sum())
    trainer = build("exact", compute_dtype="float32", quantization="none")
    for budget in (1, 40, 8192):
        trainer.step.micro_batch_tokens = budget
        total_loss, tokens = trainer.step.validation.sums(trainer.step.model, trainer.step.micro_batches, 1).tolist()
        assert tokens == targets
        assert total_loss / tokens == pytest.approx(total / targets, rel=1e-5)


def test_training_does_not_notice_it(build):
    """Dropout and noise draw the same numbers, and the 4-bit base is as before."""
    settings = {"lora_dropout": 0.2, "neftune_alpha": 5.0}
    with_rows = build("with", make_token_rows(7), **settings, validation_steps=2)
    with_rows.run()
    without = build("without", back=None, **settings)
    without.run()
    assert [s[:3] for s in steps(with_rows)] == [s[:3] for s in steps(without)]
    assert [s[0] for s in steps(with_rows) if s[3] is not None] == [2, 4, 6, 8, 10, 12]
    assert with_rows.step.validation.best_step == 12  # as it learns these rows, so that the weights compare
    assert all(torch.equal(w, weights(without)[name]) for name, w in weights(with_rows).items())


def test_out_of_memory_halves_and_goes_on(build, monkeypatch):
    calm = build("calm", compute_dtype="float32", validation_steps=4)
    calm.run()
    run = build("tight", compute_dtype="float32", validation_steps=4)
    forward = run.model.get_base_model().forward

    def limited(**batch):
        if batch["input_ids"].shape[1] > 60 and not run.model.training:
            raise torch.OutOfMemoryError("no room")
        return forward(**batch)

    monkeypatch.setattr(run.model.get_base_model(), "forward", limited)
    run.run()
    assert [
        line for line in run.said if "out of memory in the validation after step 4" in line
    ] and run.step.halvings == 1
    assert [r.loss for r in run.step.metrics.rows] == pytest.approx([r.loss for r in calm.step.metrics.rows], rel=1e-4)
    losses = [loss for _, loss in calm.step.validation.points]
    assert [loss for _, loss in run.step.validation.points] == pytest.approx(losses, rel=1e-4)


def test_four_an_epoch_and_one_at_the_end(build):
    trainer = build("often", batch_size=2, epochs=1.3)  # 11 steps an epoch
    trainer.run()
    assert [step for step, _ in trainer.step.validation.points] == [2, 4, 6, 8, 10, 12, 14, 15]


def overfitting(build, name, **settings):
    """The validation rows contradict the training rows, so that their loss soon rises."""
    against = [{**row, "labels": [-100] * len(row["labels"])} for row in make_token_rows(7)]
    for row in against:
        row["labels"][-3:] = [3, 4, 5]
    return build(name, against, learning_rate=2e-2, epochs=8.0, validation_steps=3, **settings)


def test_patience_ends_it_and_the_best_weights_are_kept(build):
    trainer = overfitting(build, "patient", patience=2)
    trainer.run()
    points, best = trainer.step.validation.points, trainer.step.validation.best_step
    assert points[-1][0] == best + 6 < 48 and trainer.state.global_step == best + 6
    again = mean_loss(trainer)
    assert again == dict(points)[best]
    assert again < points[-1][1]
    assert any(f"keeping the adapter of step {best}" in line for line in trainer.said)
    totals = trainer.step.validation.totals()
    assert totals["stopped_early"] and totals["best_step"] == best


def interrupt(monkeypatch, trainer, step, training):
    """Ask for a stop in the first forward pass, of training or of a validation, after `step` is done."""
    forward = trainer.model.get_base_model().forward

    def interrupted(**batch):
        if trainer.state.global_step == step and trainer.model.training == training:
            trainer.step.request_stop()
        return forward(**batch)

    monkeypatch.setattr(trainer.model.get_base_model(), "forward", interrupted)


@pytest.mark.parametrize("moment", ["in an epoch's first step", "in a validation", "in the last validation"])
def test_interrupted_run_ends_with_the_same_bits(build, monkeypatch, moment):
    settings = {"lora_dropout": 0.2, **({} if moment == "in the last validation" else {"patience": 3})}
    whole = overfitting(build, "whole", **settings)
    whole.run()
    last = whole.state.global_step
    monkeypatch.setattr(checkpoints, "MINUTES", 0.0)  # after every step
    at = {"in an epoch's first step": 12, "in a validation": last - 3, "in the last validation": last}[moment]
    for _ in range(2):  # an attempt that comes no further must not spoil anything
        broken = overfitting(build, "broken", **settings)
        interrupt(monkeypatch, broken, at, training="step" in moment)
        with pytest.raises(Interrupted):
            broken.run()
        assert checkpoints.last_valid(broken.step.folder).name == f"checkpoint-{at}"
    resumed = overfitting(build, "broken", **settings)
    resumed.run()
    assert steps(resumed) == steps(whole)
    assert resumed.step.validation.points == whole.step.validation.points
    assert all(torch.equal(w, weights(whole)[name]) for name, w in weights(resumed).items())


def test_the_id_decides_which_rows_are_for_validation(tmp_path):
    rows = make_token_rows(400)
    _, _, few = read_rows(write_tokens(tmp_path / "few.parquet", rows[:200]), 0.1)
    rest, back, many = read_rows(write_tokens(tmp_path / "many.parquet", rows[::-1]), 0.1)
    assert set(few) == {id for id in many if int(id) < 200}
    assert 20 < len(many) < 60 and len(back) == len(many) and len(rest) + len(back) == 400
    ids = {tuple(row["input_ids"]): row["id"] for row in rows}
    assert [ids[tuple(row["input_ids"])] for row in back] == many


def test_validation_does_not_follow_from_the_hash_that_made_a_training_row(tmp_path):
    """Rows with a low digest of the id are the held-out ones: none of them is here."""
    rows = [row for row in make_token_rows(500) if hashlib.sha256(row["id"].encode()).digest()[0] >= 0.2 * 256]
    _, back, _ = read_rows(write_tokens(tmp_path / "tokens.parquet", rows), 0.1)
    assert 20 < len(back) < 60


def test_share_that_holds_back_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"validation_share 0\.001 holds back 0 of 5 training rows: give a larger"):
        read_rows(write_tokens(tmp_path / "tokens.parquet", make_token_rows(5)), 0.001)


def test_worker_saves_the_best_and_lists_the_validation_rows(job, bases, tmp_path):
    settings = {"learning_rate": 5e-2, "validation_share": 0.3, "patience": 1, "max_steps": 45}
    worked = job("best", 1, rows=60, **settings)
    train_here(worked)
    config, output = TrainingConfig(**worked["config"]), Path(worked["output"])
    totals = json.loads((output / "training.json").read_text())
    log = pq.read_table(output / "training_log.parquet").to_pydict()
    losses = {step: loss for step, loss in zip(log["step"], log["validation_loss"], strict=True) if loss}
    assert totals["stopped_early"] and totals["steps"] == max(losses) > totals["best_step"]
    assert totals["validation_loss"] == min(losses.values()) == losses[totals["best_step"]]
    ledger = pq.read_table(output / "ledger.parquet").to_pylist()
    rest, back, ids = read_rows(Path(worked["tokens"]), 0.3)
    assert [line["id"] for line in ledger] == ids and ledger[0]["reason"] == "held back for validation"
    model = base.load(bases("llama"), config, CPU)
    trainer = PackedTrainer(model, rest, config, tmp_path, print, back)
    saved = load_file(output / "adapter" / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(saved[name.replace(".default", "")])
    refresh(model)
    trainer.step.micro_batch_tokens = 2048
    assert mean_loss(trainer) == pytest.approx(totals["validation_loss"], rel=1e-5)
