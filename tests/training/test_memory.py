"""What is kept for the backward pass changes memory and never the gradients."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig

from tasks.config import TrainingConfig
from tasks.model import base
from tasks.model.activation_checkpointing import checkpoint_activations, decoder_layers
from tasks.training import memory

CPU = torch.device("cpu")
TOKENS = 200


@pytest.fixture
def traceable_attention():
    """The GPU's attention is one operation; the CPU's reads row lengths, which cannot be compiled."""

    def attend(module, query, key, value, attention_mask, **_):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2), None

    before = AttentionInterface()["packed"]
    AttentionInterface.register("packed", attend)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
        yield
    AttentionInterface.register("packed", before)


def gradients(folder, speed, compiled, dropout=0.0):
    """Gradients of every adapter weight, values kept per token, and large products computed in the backward pass."""
    model = base.load(folder, TrainingConfig(lora_r=4, lora_dropout=dropout), CPU).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    backbone = model.get_base_model().model
    checkpoint_activations(model.get_base_model(), speed, dropout > 0)
    if compiled:
        for layer in decoder_layers(backbone):  # the second backend draws other random numbers than uncompiled layers
            layer.compile(dynamic=True, backend="aot_eager" if dropout else "aot_eager_decomp_partition")
    torch.manual_seed(2)
    kept: dict[int, int] = {}

    def keep(tensor):
        if TOKENS in tensor.shape:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    positions = torch.arange(TOKENS)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = backbone(input_ids=positions % 90 + 3, position_ids=positions, use_cache=False).last_hidden_state
    with torch.profiler.profile() as profile:
        (out.float() * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    again = sum(event.count for event in profile.key_averages() if event.key == "qlora_flow::lora_linear")
    got = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return got, sum(kept.values()) // TOKENS, again


def test_gradients_are_the_same_to_the_bit(bases, traceable_attention):
    folder = bases("llama")
    want, everything, none = gradients(folder, "fast", compiled=True)
    assert none == 0
    kept = [everything]
    for speed, products in (("balanced", 0), ("lean", 2 * 3)):  # a layer's last product is not computed again
        torch._dynamo.reset()
        got, bytes_per_token, again = gradients(folder, speed, compiled=True)
        assert again == products, speed
        assert all(torch.equal(got[name], want[name]) for name in want), speed
        kept.append(bytes_per_token)
    assert kept[0] > 1.2 * kept[1] > 4 * kept[2], kept


def test_what_is_computed_again_drops_the_same(bases, traceable_attention):
    want, _, _ = gradients(bases("llama"), "fast", compiled=False, dropout=0.3)
    for speed in ("balanced", "lean"):
        for compiled in (False, True):
            torch._dynamo.reset()
            got, _, _ = gradients(bases("llama"), speed, compiled, dropout=0.3)
            assert all(torch.equal(got[name], want[name]) for name in want), (speed, compiled)


@pytest.mark.parametrize(
    "gigabytes, step_tokens, longest, speed",
    [
        (70, 11_500, 2048, "fast"),  # an 80 GB card, 40 rows of the article
        (70, 18_600, 2048, "balanced"),
        (15, 14_000, 2048, "balanced"),  # a 24 GB card
        (15, 14_000, 8192, "lean"),  # a row too long for that
        (15, 1_000, 512, "fast"),  # few tokens a step
        (4, 14_000, 2048, "lean"),
    ],
)
def test_the_fastest_that_fits_is_chosen(gigabytes, step_tokens, longest, speed):
    with torch.device("meta"):
        llama = AutoModelForCausalLM.from_config(LlamaConfig(intermediate_size=14336, num_key_value_heads=8))
    layers = decoder_layers(llama)
    assert len(layers) == 32
    assert memory.choose_speed(layers, step_tokens, longest, gigabytes * 10**9) == speed


def test_micro_batch_fills_the_room():
    assert memory.tokens_in({1000: 4_000_000_000, 3000: 10_000_000_000}, 31_000_000_000) == 10_000
    assert memory.tokens_in({2000: 9_000_000_000}, 63_000_000_000) == 14_000
    assert memory.tokens_in({1000: 4_000_000_000, 3000: 10_000_000_000}, 3_000_000_000) == 1000


@pytest.mark.parametrize(
    "gigabytes, speed, step_tokens, at_once, kept",
    [
        (61, "auto", 13_200, 0, True),  # an 80 GB card
        (61, "auto", 17_000, 0, False),  # two micro-batches instead of one
        (61, "auto", 100_000, 0, True),
        (61, "fast", 11_500, 14_000, False),  # would not fit beside them
        (61, "fast", 8_000, 14_000, True),
        (28, "auto", 18_400, 0, False),  # a 40 GB card
        (28, "auto", 2_500, 0, True),
        (14, "auto", 2_500, 0, False),  # a 24 GB card
        (61, "lean", 2_500, 0, False),
    ],
)
def test_weights_stay_expanded_where_that_is_faster(gigabytes, speed, step_tokens, at_once, kept):
    with torch.device("meta"):
        llama = AutoModelForCausalLM.from_config(LlamaConfig(intermediate_size=14336, num_key_value_heads=8))
    layers, expanded = decoder_layers(llama), 14 * 10**9
    assert memory.worth_expanding(expanded, layers, speed, step_tokens, at_once, 2048, gigabytes * 10**9) == kept
