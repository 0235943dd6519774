"""transformers: how decoder layers are found and how attention is replaced."""

import datetime
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tasks.model import attention
from tasks.model.activation_checkpointing import decoder_layers
from tests.contracts.conftest import TINY

CONFIGS = [
    LlamaConfig(**TINY),
    MistralConfig(**TINY, sliding_window=4),
    Qwen2Config(**TINY),
    Qwen3Config(**TINY, head_dim=16),
]
IDS = torch.arange(3, 13)[None]
kinds = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)


@kinds
def test_no_split_modules_names_the_decoder_layers(config: PretrainedConfig) -> None:
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    assert set(model._no_split_modules)
    assert decoder_layers(model) == list(model.base_model.layers) and len(model.base_model.layers) == 2


def test_model_mapping_gives_the_class_of_a_configuration() -> None:
    assert AutoModelForCausalLM._model_mapping.get(LlamaConfig, None) is LlamaForCausalLM
    assert AutoModelForCausalLM._model_mapping.get(PretrainedConfig, None) is None


def test_supports_attention_backend_tells_whose_attention_can_be_replaced() -> None:
    assert LlamaForCausalLM._supports_attention_backend is True
    assert not getattr(BloomForCausalLM, "_supports_attention_backend", False)
    attention.check_supported(LlamaConfig(**TINY))
    with pytest.raises(ValueError, match="attention of its own"):
        attention.check_supported(BloomConfig(hidden_size=64, n_head=4, n_layer=1))


def test_attn_implementation_names_the_attention_in_use(llama: Callable[[], LlamaForCausalLM]) -> None:
    model = llama()
    before = model.config._attn_implementation
    model.set_attn_implementation(attention.NAME)
    assert model.config._attn_implementation == attention.NAME != before
    model.set_attn_implementation(before)
    assert model.config._attn_implementation == before


@pytest.fixture
def calls(llama: Callable[[], LlamaForCausalLM]) -> tuple[Any, list[dict[str, Any]]]:
    """A model with an attention of its own, and what that is called with."""
    seen: list[dict[str, Any]] = []

    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **named: Any) -> Any:
        seen.append({**named, "module": module, "query": query, "key": key, "mask": attention_mask})
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("contract", attend)
    model = llama()
    model.set_attn_implementation("contract")
    return model, seen


def test_attention_interface_hands_down_every_keyword_argument(calls: tuple[Any, list[dict[str, Any]]]) -> None:
    model, seen = calls
    boundaries = torch.tensor([0, 4, 10], dtype=torch.int32)
    given = {"cu_seq_lens_q": boundaries, "max_length_q": 6, "cached": object()}
    model.base_model(input_ids=IDS, position_ids=IDS, use_cache=False, **given)
    assert len(seen) == 2
    assert all(call[name] is value for call in seen for name, value in given.items())


def test_attention_interface_gives_heads_before_tokens_and_the_scale(calls: tuple[Any, list[dict[str, Any]]]) -> None:
    model, seen = calls
    model.base_model(input_ids=IDS, use_cache=False)
    assert [(call["query"].shape, call["key"].shape) for call in seen] == [((1, 4, 10, 16), (1, 2, 10, 16))] * 2
    assert [call["scaling"] for call in seen] == [16**-0.5] * 2 and not any(call["dropout"] for call in seen)


def test_layer_idx_and_is_causal_of_the_attention_module(calls: tuple[Any, list[dict[str, Any]]]) -> None:
    model, seen = calls
    model.base_model(input_ids=IDS, use_cache=False)
    assert [call["module"].layer_idx for call in seen] == [0, 1]
    assert [call["module"].is_causal for call in seen] == [True, True]


def test_an_attention_without_mask_function_gets_no_mask(calls: tuple[Any, list[dict[str, Any]]]) -> None:
    model, seen = calls
    model.base_model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
    assert [call["mask"] for call in seen] == [None, None]


def test_attention_mask_interface_decides_the_mask(calls: tuple[Any, list[dict[str, Any]]]) -> None:
    """The packed attention registers a function that gives none."""
    model, seen = calls
    assert AttentionMaskInterface()[attention.NAME]() is None
    mask = torch.ones(1, 1, 10, 10)
    AttentionMaskInterface.register("contract", lambda *_, **__: mask)
    try:
        model.base_model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
    finally:
        AttentionMaskInterface._global_mapping.pop("contract")
    assert all(call["mask"] is mask for call in seen)


def test_sliding_window_counts_the_position_itself() -> None:
    """Where a layer has one, it is handed to the attention under this name."""
    seen: list[Any] = []

    def attend(module: Any, query: Any, key: Any, value: Any, mask: Any, **named: Any) -> Any:
        seen.append(named["sliding_window"])
        return torch.zeros_like(query).transpose(1, 2), None

    AttentionInterface.register("contract", attend)
    model = AutoModelForCausalLM.from_config(MistralConfig(**TINY, sliding_window=4), attn_implementation="contract")
    model.base_model(input_ids=IDS, use_cache=False)
    assert seen == [4, 4]
    from transformers.masking_utils import sliding_window_overlay

    inside = sliding_window_overlay(4)
    assert [bool(inside(0, 0, torch.tensor(9), torch.tensor(key))) for key in (5, 6, 9)] == [False, True, True]


def test_layer_types_name_full_and_sliding_attention() -> None:
    config = Gemma3TextConfig(**{**TINY, "num_hidden_layers": 6})
    assert set(config.layer_types) == {"full_attention", "sliding_attention"}


def test_base_model_and_output_embeddings_are_all_there_is(llama: Callable[[], LlamaForCausalLM]) -> None:
    """The forward that training replaces: the backbone's last hidden states through the head."""
    model: Any = llama()
    with torch.no_grad():
        hidden = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state
        torch.testing.assert_close(model.get_output_embeddings()(hidden), model(input_ids=IDS, use_cache=False).logits)


def test_transformers_weights_of_a_configuration_names_other_weights(
    llama: Callable[[], LlamaForCausalLM], tmp_path: Any
) -> None:
    """Which is why a base that has it is refused."""
    model: Any = llama()
    model.config.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    (tmp_path / "config.json").write_text(config.replace("{", '{"transformers_weights": "other.safetensors",', 1))
    loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_enable_input_require_grads_reaches_the_first_layer(llama: Callable[[], LlamaForCausalLM]) -> None:
    model: Any = llama().requires_grad_(False)
    seen: list[bool] = []
    model.base_model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].requires_grad))
    model(input_ids=IDS, use_cache=False)
    model.enable_input_require_grads()
    model(input_ids=IDS, use_cache=False)
    assert seen == [False, True]


def test_decoder_layer_takes_its_input_by_position() -> None:
    """Activation checkpointing hands it on as the backbone gives it."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    assert next(iter(inspect.signature(LlamaDecoderLayer.forward).parameters.items()))[0] == "self"
    assert list(inspect.signature(LlamaDecoderLayer.forward).parameters)[1] == "hidden_states"


def test_a_chat_template_takes_another_clock_and_tells_what_is_generated() -> None:
    from transformers.utils import chat_template_utils as utils

    source = (
        "{{ strftime_now('%Y') }}{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    )
    given = {"documents": None, "add_generation_prompt": False, "strftime_now": datetime.date(1999, 1, 1).strftime}
    messages = [{"role": "assistant", "content": "ab"}]
    compiled = utils._compile_jinja_template(source)
    assert utils._render_with_assistant_indices(compiled, messages, None, **given) == ("1999ab", [(4, 6)])
