"""Embedding and head trained whole beside LoRA: exact gradients, no update lost, and an adapter that loads."""

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tasks.config import TrainingConfig
from tasks.errors import UserError
from tasks.model import base
from tasks.model.lora import refresh
from tasks.training import checkpoints, worker
from tasks.training.compute_plan import operations_per_token
from tasks.training.data import read_rows
from tasks.training.packing import collate, flatten
from tasks.training.schema import TrainingJob
from tasks.training.step import Interrupted
from tasks.training.trl_adapter import PackedTrainer
from tests.training.conftest import ARCHITECTURES, make_token_rows, write_tokens
from tests.training.test_lora import gradients, reference

CPU = torch.device("cpu")
BOTH = ["lm_head", "embed_tokens"]


def load(folder, modules=BOTH, **settings):
    config = TrainingConfig(lora_r=4, lora_alpha=6, batch_size=4, modules_to_save=modules, **settings)
    return base.load(folder, config, CPU), config


@pytest.mark.parametrize("modules", [["lm_head"], ["embed_tokens"], BOTH], ids="+".join)
@pytest.mark.parametrize(
    "settings, tolerance",
    [(dict(compute_dtype="float32"), 1e-4), (dict(), 0.05), (dict(speed="lean"), 0.05)],
    ids=["float32", "bfloat16", "lean"],
)
def test_gradients_of_every_trained_weight(bases, modules, settings, tolerance):
    rows = collate(make_token_rows(6))["rows"]
    model, _ = load(bases("qwen2"), modules, **settings)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    refresh(model)
    loss, got = gradients(model, rows)
    want_loss, want = reference(bases("qwen2"), model, rows)
    torch.testing.assert_close(loss, want_loss, rtol=max(tolerance / 5, 1e-5), atol=0)
    assert sum("modules_to_save" in name for name in got) == len(modules)
    for name, gradient in got.items():
        error = (gradient - want[name]).norm() / want[name].norm()
        assert error < tolerance, f"{name}: relative error {error:.2g}"


def test_trained_copies_are_float32_and_keep_small_updates(bases, tmp_path):
    trainer = build(bases, tmp_path, learning_rate=1e-5, max_steps=3)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "modules_to_save" in n}
    trainer.run()
    after = {n: p for n, p in trainer.model.named_parameters() if n in before}
    assert len(before) == 2 and all(p.dtype == torch.float32 for p in after.values())
    for name, weight in after.items():
        moved = weight != before[name]
        assert moved.float().mean() > (0.9 if "lm_head" in name else 0.5), name  # of the embedding, words of the rows
        assert (weight.bfloat16() == before[name].bfloat16())[moved].float().mean() > 0.5  # bfloat16 would lose them


def build(bases, tmp_path, name="run", **settings):
    model, config = load(bases("llama"), **settings)
    (tmp_path / name).mkdir(exist_ok=True)
    rows = read_rows(write_tokens(tmp_path / "tokens.parquet", make_token_rows(22)))[0]
    return PackedTrainer(model, rows, config, tmp_path / name, lambda line: None)


def test_interrupted_run_ends_with_the_same_bits(bases, tmp_path, monkeypatch):
    whole = build(bases, tmp_path, "whole", epochs=2)
    whole.run()
    monkeypatch.setattr(checkpoints, "MINUTES", 0.0)
    broken = build(bases, tmp_path, "broken", epochs=2)
    forward = broken.model.get_base_model().forward

    def interrupted(**batch):
        if broken.state.global_step == 7:
            broken.step.request_stop()
        return forward(**batch)

    monkeypatch.setattr(broken.model.get_base_model(), "forward", interrupted)
    with pytest.raises(Interrupted):
        broken.run()
    resumed = build(bases, tmp_path, "broken", epochs=2)
    resumed.run()
    assert resumed.step.metrics.resumed_from == 7
    want = dict(whole.model.named_parameters())
    assert all(torch.equal(p, want[name]) for name, p in resumed.model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_saved_adapter_gives_the_trained_loss_and_leaves_the_base_as_it_was(bases, tmp_path, dtype, tolerance):
    trainer = build(bases, tmp_path, learning_rate=1e-2, compute_dtype=dtype, max_steps=6)
    untrained = AutoModelForCausalLM.from_pretrained(bases("llama"), dtype=torch.float32)
    trainer.run()
    paths = {"tokens": "", "model": "", "checkpoints": "", "output": str(tmp_path)}
    worker.write(trainer, TrainingJob(**paths, source="tiny", config=TrainingConfig()), [])
    refresh(trainer.step.model)
    rows = collate(make_token_rows(5, seed=9))["rows"]
    with torch.no_grad():
        want = trainer.step.model(**vars(flatten(rows.rows, CPU))) / rows.targets
    compute = getattr(torch, dtype)
    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    stock = AutoModelForCausalLM.from_pretrained(bases("llama"), dtype=compute, quantization_config=quantized)
    base.never_repack(stock)
    loaded = PeftModel.from_pretrained(stock, tmp_path / "adapter", autocast_adapter_dtype=False)
    got = sum(loss_of(loaded, row) for row in rows.rows) / rows.targets
    assert float(got) == pytest.approx(float(want), rel=tolerance)
    head = loaded.get_base_model().lm_head
    assert not torch.equal(head.weight, head.original_module.weight)
    with loaded.disable_adapter():
        assert torch.equal(head.weight.float(), untrained.lm_head.weight.to(compute).float())


def loss_of(model, row):
    with torch.no_grad():
        logits = model(input_ids=row.input_ids[None]).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, row.labels[1:], reduction="sum")


def test_others_are_refused_by_name(bases):
    with pytest.raises(
        UserError, match="q_proj, norm cannot be trained in full; of this base embed_tokens and lm_head can"
    ):
        load(bases("llama"), ["q_proj", "lm_head", "norm"])


def test_tied_matrices_are_refused(tmp_path):
    config = ARCHITECTURES["llama"]()
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="embed_tokens and lm_head of this base are one matrix"):
        load(tmp_path, ["lm_head"])


def test_operations_of_a_trained_head_count_once(bases):
    frozen, trained = (operations_per_token(load(bases("llama"), modules)[0]) for modules in ([], ["lm_head"]))
    assert frozen == 4 * (2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) + 64 * 97)
    assert trained == frozen + 2 * 64 * 97
