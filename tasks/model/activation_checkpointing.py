"""Activation checkpointing of the decoder layers at three levels.

    fast       everything is kept for the backward pass
    balanced   matrix products and attention are kept; norms, rotary embeddings and activations are recomputed
    lean       only a layer's input is kept; the layer is recomputed

The checkpoint is inside the compiled layer, so that the compiler can leave out what the backward pass does not need,
such as a layer's last product.
"""

import functools
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_KEPT = {
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "qlora_flow::lora_linear",
    "torch_attn::_varlen_attn",
}


def checkpoint_activations(model: torch.nn.Module, speed: str, dropout: bool) -> None:
    """Wrap the forward of every decoder layer so that the backward pass recomputes what `speed` does not keep."""
    if speed == "fast":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": dropout}
    if speed == "balanced":
        choose = functools.partial(create_selective_checkpoint_contexts, _balanced)
        choose.cache_hash = "balanced"  # type: ignore[attr-defined]  # without it torch does not cache compiled layers
        options["context_fn"] = choose
    for layer in decoder_layers(model):
        layer.forward = _CheckpointedForward(layer.forward, options)


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The decoder layers of a model, by the class names that transformers gives for sharding."""
    kinds = set(getattr(model, "_no_split_modules", None) or [])
    return [m for m in model.modules() if kinds & {kind.__name__ for kind in type(m).__mro__}]  # sharding subclasses


def _balanced(context: Any, op: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    name = op._schema.name if isinstance(op, torch._ops.OpOverload) else ""
    return CheckpointPolicy.MUST_SAVE if name in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


class _CheckpointedForward:
    """A forward under torch's activation checkpointing. Under a partial, dynamo would not see what `speed` keeps."""

    def __init__(self, forward: Any, options: dict[str, Any]) -> None:
        self.forward, self.options = forward, options

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return checkpoint(self.forward, *arguments, **self.options, **named)
