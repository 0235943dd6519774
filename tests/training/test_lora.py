"""Gradients of every adapter weight against plain float32 arithmetic; 4 bits that are really 4 bits."""

import bitsandbytes.functional as bnb
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import get_peft_model_state_dict
from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig

from tasks.config import TrainingConfig
from tasks.errors import UserError
from tasks.model import attention, base
from tasks.model.fused_loss import use_fused_loss
from tasks.model.lora import FusedLinear, FusedLinear4bit, groups, refresh
from tasks.training.packing import collate, flatten
from tests.training.conftest import make_token_rows

CPU = torch.device("cpu")
SHAPE = dict(vocab_size=97, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


def adapted(folder, **settings):
    """A loaded model whose B matrices are no longer zero, so that A has a gradient too."""
    model = base.load(folder, TrainingConfig(lora_r=4, lora_alpha=6, **settings), CPU)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    refresh(model)
    return model


def gradients(model, rows):
    use_fused_loss(model.get_base_model())
    model.train()
    loss = model(**vars(flatten(rows.rows, CPU))) / rows.targets
    loss.backward()
    return loss.detach(), {n: p.grad.float() for n, p in model.named_parameters() if p.requires_grad}


def reference(folder, model, rows):
    """The same adapter on the dequantized base, as explicit float32 weights W + s·BA under stock transformers."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention.NAME)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if p.requires_grad}
    weights = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", ""): leaf
        for name, leaf in leaves.items()
        if "modules_to_save" in name
    }
    for name, module in model.named_modules():
        if isinstance(module, FusedLinear4bit | FusedLinear):
            layer = module.get_base_layer()
            frozen = layer.weight.data.float()
            if isinstance(layer, Linear4bit):
                frozen = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
            a, b = (leaves[f"{name}.lora_{part}.default.weight"] for part in "AB")
            whole = frozen + module.scaling["default"] * (b @ a)
            if module.lora_magnitude_vector:
                magnitude = leaves[f"{name}.lora_magnitude_vector.default.weight"]
                whole = whole * (magnitude / whole.norm(dim=1).detach())[:, None]
            weights[name.removeprefix("base_model.model.") + ".weight"] = whole
    use_fused_loss(plain)
    loss = torch.func.functional_call(plain, weights, kwargs=vars(flatten(rows.rows, CPU))) / rows.targets
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}


CASES = [
    pytest.param(dict(), 0.05, id="nf4-bfloat16"),
    pytest.param(dict(compute_dtype="float32"), 1e-4, id="nf4-float32"),
    pytest.param(dict(compute_dtype="float32", quant_type="fp4"), 1e-4, id="fp4"),
    pytest.param(dict(compute_dtype="float32", double_quant=True), 1e-4, id="double-quantized"),
    pytest.param(dict(compute_dtype="float32", quantization="none"), 1e-4, id="not-quantized"),
    pytest.param(dict(compute_dtype="float32", speed="lean", rslora=True), 1e-4, id="rslora"),
    pytest.param(dict(dora=True), 0.05, id="dora-bfloat16"),
    pytest.param(dict(compute_dtype="float32", dora=True), 1e-4, id="dora"),
    pytest.param(dict(compute_dtype="float32", dora=True, double_quant=True, rslora=True), 1e-4, id="dora-rslora"),
]


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "packed"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("settings, tolerance", CASES)
def test_gradient_of_every_adapter_weight(bases, settings, tolerance, architecture, dense):
    rows = collate(make_token_rows(6))["rows"]
    model = adapted(bases(architecture), **settings)
    for group in groups(model) if dense else []:
        group.keep_dense()
    loss, got = gradients(model, rows)
    want_loss, want = reference(bases(architecture), model, rows)
    torch.testing.assert_close(loss, want_loss, rtol=max(tolerance / 5, 1e-5), atol=0)
    assert len(got) == (3 if settings.get("dora") else 2) * 2 * 7
    for name, gradient in got.items():
        error = (gradient - want[name]).norm() / want[name].norm()
        assert error < tolerance, f"{name}: relative error {error:.2g}"


def test_dropout_falls_on_the_adapter_alone(bases):
    rows = collate(make_token_rows(6))["rows"]
    torch.manual_seed(0)
    plain, _ = gradients(adapted(bases("llama"), compute_dtype="float32"), rows)
    dropped = adapted(bases("llama"), compute_dtype="float32", lora_dropout=0.5)
    loss, got = gradients(dropped, rows)
    assert loss != plain and all(gradient.norm() > 0 for gradient in got.values())
    dropped.eval()
    torch.testing.assert_close(dropped(**vars(flatten(rows.rows, CPU))).detach() / rows.targets, plain)


def test_dropout_has_its_part_in_every_gradient(bases):
    """Every gradient is what the loss does along it when the same numbers are dropped."""
    rows = collate(make_token_rows(6))["rows"]
    model = adapted(bases("llama"), compute_dtype="float32", lora_dropout=0.3)
    model.train()
    use_fused_loss(model.get_base_model())

    def loss():
        refresh(model)
        torch.manual_seed(5)
        return model(**vars(flatten(rows.rows, CPU))) / rows.targets

    loss().backward()
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            norm, before = weight.grad.norm(), weight.data.clone()
            step = 0.02 * weight.grad / norm
            with torch.no_grad():
                weight.copy_(before + step)
                risen = loss()
                weight.copy_(before - step)
                rise = (risen - loss()) / 0.04
                weight.copy_(before)
            torch.testing.assert_close(rise, norm, rtol=0.02, atol=0, msg=name)


def test_dora_trains_magnitudes_in_float32(bases):
    model = adapted(bases("llama"), dora=True)
    _, got = gradients(model, collate(make_token_rows(6))["rows"])
    magnitudes = [name for name in got if "magnitude" in name]
    assert magnitudes and all(got[name].norm() > 0 for name in got)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert len(get_peft_model_state_dict(model)) == 3 * 2 * 7


def test_untrained_dora_changes_nothing(bases):
    """A magnitude's first value is as PEFT rounds it, and so is the norm that it is divided by."""
    rows, losses = collate(make_token_rows(6))["rows"], []
    for dora in (False, True):
        model = base.load(bases("llama"), TrainingConfig(dora=dora), CPU)
        use_fused_loss(model.get_base_model())
        losses.append(model(**vars(flatten(rows.rows, CPU))).item())
    assert losses[0] == losses[1]


def test_bases_that_cannot_be_quantized_or_adapted_are_refused(tmp_path):
    for shape, quantization, sentence in (
        (MixtralConfig(num_local_experts=2, num_key_value_heads=2, **SHAPE), "4bit", "has experts"),
        (GPT2Config(n_embd=64, n_layer=1, n_head=2, vocab_size=97), "none", "no linear"),
    ):
        AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=sentence):
            base.load(tmp_path, TrainingConfig(quantization=quantization), CPU)


def test_layer_that_is_not_in_4_bits_is_an_error(bases):
    model = adapted(bases("llama"))
    base.check_quantized(model)
    module = next(m for m in model.modules() if isinstance(m, FusedLinear4bit))
    module.base_layer = torch.nn.Linear(64, 64)
    with pytest.raises(RuntimeError, match=r"4-bit was configured, but .*q_proj is a Linear"):
        base.check_quantized(model)


def test_unknown_target_module_names_the_ones_there_are(bases):
    with pytest.raises(UserError, match=r"no linear layer is named query; this base has down_proj, .*v_proj"):
        adapted(bases("llama"), target_modules=["q_proj", "query"])


@pytest.mark.parametrize(
    "field, value", [("compute_dtype", "float16"), ("optimizer", "paged_adamw_8bit"), ("compile", "always")]
)
def test_what_needs_a_gpu_is_refused_without_one(bases, field, value):
    with pytest.raises(UserError, match=rf"training\.{field} {value} needs a GPU"):
        adapted(bases("llama"), **{field: value})


def test_targets_are_only_those_asked_for(bases):
    model = adapted(bases("llama"), target_modules=["q_proj", "v_proj"])
    assert {m for m in model.modules() if isinstance(m, FusedLinear4bit)} and len(
        [n for n, p in model.named_parameters() if p.requires_grad]
    ) == 2 * 2 * 2


def test_eval_forward_does_not_take_the_gradient_away(bases):
    """bitsandbytes re-packs 4-bit weights in the first eval forward on CPUs with AVX-512-BF16."""
    rows = collate(make_token_rows(6))["rows"]
    _, want = gradients(adapted(bases("llama")), rows)
    model = adapted(bases("llama"))
    for module in model.modules():
        if isinstance(module, Linear4bit):
            assert module.support_avx512bf16_for_cpu is False
    model.eval()
    with torch.no_grad():
        model.get_base_model().model(
            input_ids=torch.tensor([[3, 4, 5]]), cu_seq_lens_q=torch.tensor([0, 3]), max_length_q=3
        )
        for module in model.modules():  # also through bitsandbytes' own forward
            if isinstance(module, Linear4bit):
                module(torch.ones(1, module.in_features, dtype=torch.bfloat16))
    _, got = gradients(model, rows)
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, want[name])
