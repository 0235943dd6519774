"""How much of a layer's work is kept for the backward pass, and how many tokens at once fit then.

    fast       everything is kept
    balanced   products and attention are kept; norms, rotations and activations between them are computed again
    lean       a layer's input alone is kept, the layer is computed again

The kept bytes of a token fall from fast to lean by about a third and then to a tenth; balanced costs a few percent of
the time, lean about a quarter.
"""

import functools
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel

_DEAR = {
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "bitsandbytes::gemv_4bit",
    "qlora_flow::lora_linear",
    "torch_attn::_varlen_attn",
}


def _balanced(context: Any, op: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    dear = getattr(op, "_schema", None) is not None and op._schema.name in _DEAR
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE


def recompute(model: PreTrainedModel, speed: str, dropout: bool) -> None:
    """Wrap every decoder layer's forward so that its backward pass computes again what `speed` does not keep."""
    if speed == "fast":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": dropout}
    if speed == "balanced":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _balanced)
    for layer in decoder_layers(model):
        layer.forward = _Recomputed(layer.forward, options)


class _Recomputed:
    """A forward that is run under torch's activation checkpointing."""

    def __init__(self, forward: Any, options: dict[str, Any]) -> None:
        self.forward, self.options = forward, options

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*arguments, **named)
        return checkpoint(self.forward, *arguments, **self.options, **named)


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The blocks a model is made of, as transformers names them for sharding."""
    kinds = set(getattr(model, "_no_split_modules", None) or [])
    return [module for module in model.modules() if type(module).__name__ in kinds]
