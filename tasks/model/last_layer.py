"""The last decoder layer where something is learnt: what follows its attention runs on those positions alone.

Nothing reads its other outputs, and with completion-only loss they are most of them: about a fortieth of an 8B model's
arithmetic at one learnt token in eight. Only for layers that compute what Llama's does (Llama, Mistral, Qwen 2 and 3,
...), which is found out by comparing their source.
"""

import ast
import inspect
import textwrap
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tasks.model.activation_checkpointing import decoder_layers


def on_learnt_positions(model: PreTrainedModel) -> bool:
    """Replace the last layer's forward by one that takes `keep` (int64 `[learnt]`) among its keyword arguments and
    returns those positions alone, `[1, learnt, width]`. False, and nothing changed, where the layer is unlike Llama's.
    """
    layers = decoder_layers(model)
    if not layers or _body(type(layers[-1])) != _body(LlamaDecoderLayer):
        return False
    kind = type(layers[-1])
    # a class of its own, by which the compiler tells it from the other layers; its name is what layers are found by
    layers[-1].__class__ = type(kind.__name__, (kind,), {"forward": _forward})
    return True


def _forward(self: Any, hidden_states: torch.Tensor, *, keep: torch.Tensor, **more: Any) -> torch.Tensor:
    attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **more)
    hidden_states = (hidden_states + attended)[:, keep]
    return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def _body(layer: type[torch.nn.Module]) -> list[str]:
    """A layer's forward as statements, without annotations and names of arguments' types."""
    function = ast.parse(textwrap.dedent(inspect.getsource(layer.forward))).body[0]
    assert isinstance(function, ast.FunctionDef)
    return [ast.dump(statement) for statement in function.body]
