"""One tiny Llama for all tests that need a model; a test that changes it takes a copy."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

TINY: dict[str, Any] = dict(
    vocab_size=97,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
)


def random_weights(model: torch.nn.Module) -> Any:
    """The same model, every weight and norm random, so that none of them is trivially right."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.15)
    return model


@pytest.fixture(scope="session")
def llama() -> Callable[[], LlamaForCausalLM]:
    """`llama()`: a copy in float32 with the attention "sdpa"."""
    model = random_weights(LlamaForCausalLM(LlamaConfig(**TINY)))
    return lambda: copy.deepcopy(model)


@pytest.fixture
def process_group() -> Iterator[None]:
    """torch.distributed with this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
