"""How much of a step goes into expanding 4-bit weights: counted as the passes really do it."""

import json
import types

import pytest
import torch

from tasks.config import TrainingConfig
from tasks.model import base, dequantization
from tasks.model.activation_checkpointing import decoder_layers, recompute
from tasks.model.dequantization import expansions, share
from tasks.model.fused_loss import train_on_packs
from tasks.training import memory, worker
from tasks.training.data import read_rows
from tasks.training.packing import collate, flatten
from tasks.training.trainer import PackedTrainer
from tests.training.conftest import make_rows, write_tokens

CPU = torch.device("cpu")


@pytest.mark.parametrize("speed", ["fast", "balanced", "lean"])
@pytest.mark.parametrize("double_quant", [False, True])
def test_a_pass_expands_as_often_as_is_assumed(bases, speed, double_quant):
    model = base.load(bases("llama"), TrainingConfig(lora_r=4, double_quant=double_quant), CPU)
    train_on_packs(model.get_base_model())
    recompute(model.get_base_model(), speed, dropout=False)
    with torch.profiler.profile() as profile:
        model(**vars(flatten(collate(make_rows(6))["rows"].rows, CPU))).backward()
    counted = {event.key: event.count for event in profile.key_averages()}["bitsandbytes::dequantize_4bit"]
    assert counted == sum(times for _, times in expansions(model, speed)) > 0


def test_a_compiled_layer_does_not_expand_its_last_weights_again(bases):  # test_memory.py counts the products
    model = base.load(bases("llama"), TrainingConfig(lora_r=4), CPU)
    for layer in decoder_layers(model):
        layer.compile(backend="eager")
    assert [times for _, times in expansions(model, "lean")] == [3, 3, 3, 2] * 2
    assert {times for _, times in expansions(model, "balanced")} == {2}


def test_share_is_time_of_all_expansions_in_a_second(bases, monkeypatch):
    monkeypatch.setattr(dequantization, "seconds", lambda group: 1e-3 * len(group.members))
    model = base.load(bases("llama"), TrainingConfig(lora_r=4), CPU)
    assert share(model, "fast", 5.0) == pytest.approx(2 * 14 * 1e-3 * 5)  # twice every layer
    assert share(model, "lean", 5.0) == pytest.approx(3 * 14 * 1e-3 * 5)
    assert share(model, "lean", 0.0) is None  # all steps were an earlier attempt's


def test_time_grows_with_the_weights():
    def expanding(size):
        step = torch.ones(size)
        group = types.SimpleNamespace(weight=step, dense=lambda: step.cumsum(0))
        return min(dequantization.seconds(group) for _ in range(5))

    assert expanding(5_000_000) > 5 * expanding(50_000) > 0


@pytest.mark.parametrize("settings", [{"quantization": "none"}, {"dora": True}], ids=["none", "dora"])
def test_what_is_not_known_is_not_said(bases, settings):
    assert share(base.load(bases("llama"), TrainingConfig(lora_r=4, **settings), CPU), "fast", 1.0) is None


@pytest.mark.parametrize("dense", [True, False])
def test_a_run_notes_its_share(bases, tmp_path, monkeypatch, dense):
    monkeypatch.setattr(memory, "host_holds", lambda _: dense)
    config = TrainingConfig(lora_r=4, batch_size=4, max_steps=6)
    rows = read_rows(write_tokens(tmp_path / "tokens.parquet", make_rows(22)))
    trainer = PackedTrainer(base.load(bases("llama"), config, CPU), rows, config, tmp_path, lambda line: None)
    trainer.run()
    worker.write(trainer, tmp_path, "tiny", [])
    noted = json.loads((tmp_path / "training.json").read_text())["dequantization_share"]
    assert noted == 0 if dense else 0.001 < noted < 1
    assert trainer.micro_batches == 6
