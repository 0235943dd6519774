"""Which share of a step goes into expanding the frozen 4-bit weights: the price of their small size."""

import torch
from torch import nn

from tasks.model.activation_checkpointing import decoder_layers
from tasks.model.device import Instant
from tasks.model.lora import FusedLinear4bit, Group, groups
from tasks.model.sharding import is_sharded

_REPEATS = 3


def share(model: nn.Module, speed: str, passes_per_second: float) -> float | None:
    """Fraction of the time in steps; 0 where the dense values are kept.

    None where it is not known: no 4-bit base, or one that is expanded at other moments too (DoRA's norms) or divided
    among processes, or no step that was computed by this process.

    Args:
        speed: what is kept for the backward pass.
        passes_per_second: micro-batches that this process takes forward and backward in a second.
    """
    known = any(isinstance(module, FusedLinear4bit) and not module.lora_magnitude_vector for module in model.modules())
    if not known or is_sharded(model) or not passes_per_second:
        return None
    return sum(times * seconds(group) for group, times in expansions(model, speed) if group.kind) * passes_per_second


def expansions(model: nn.Module, speed: str) -> list[tuple[Group, int]]:
    """How often a micro-batch expands each group's weights: forward, backward, and forward again where it is lean."""
    found = []
    for layer in decoder_layers(model):
        compiled = layer._compiled_call_impl is not None  # then the layer's last product is not computed again
        own = groups(layer)
        found += [(g, 3 if speed == "lean" and not (compiled and g is own[-1]) else 2) for g in own]
    return found


@torch.no_grad()
def seconds(group: Group) -> float:
    """Time of one expansion on the device where the weights are."""
    device = group.weight.device
    group.dense()  # the first one also loads the kernel
    began = Instant(device)
    for _ in range(_REPEATS):
        group.dense()
    end = Instant(device)
    for moment in (began, end):
        moment.wait()
    return end.since(began) / _REPEATS
