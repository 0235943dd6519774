"""Sharding (FSDP2) of a base that is too large for one GPU: every process keeps a part of its frozen weights.

The weights of a decoder layer are gathered just before it computes, forward and backward, and freed afterwards. Every
process keeps what is small in full: the adapter with its gradients and the optimizer's moments, embedding, head, norms
and layers without plain LoRA. So clipping, checkpoints and the saved adapter are the same as without sharding.
"""

from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tasks.model.activation_checkpointing import decoder_layers
from tasks.model.lora import LoraGroup, groups

_LAYERS_IN_FLIGHT = 3  # gathered at once: the layer that computes, the next one, and its receive buffer


class _Frozen(nn.Module):
    """A group's frozen weights as parameters, which is what FSDP2 shards.

    Packed 4-bit values are viewed as bfloat16, because torch 2.11 shards floating-point tensors only.
    """

    def __init__(self, weight: Tensor, absmax: Tensor | None) -> None:
        super().__init__()
        if weight.dtype == torch.uint8:
            weight = weight.flatten().view(torch.bfloat16)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.absmax = None if absmax is None else nn.Parameter(absmax, requires_grad=False)


class _ShardedLoraGroup(LoraGroup):
    """A group whose frozen weights are gathered only while its decoder layer computes."""

    frozen: _Frozen

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.frozen.weight
        return weight.view(torch.uint8).unsqueeze(-1) if self.kind else weight

    @property
    def absmax(self) -> Tensor | None:  # type: ignore[override]  # an attribute in LoraGroup, a property here
        return self.frozen.absmax


def shard(model: PeftModel, device: torch.device) -> None:
    """Divide the frozen weights of `model`, which is on the CPU, among the processes, and move it to `device`.

    This goes layer by layer, so that a device never holds more than its part and one layer.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    base: Any = model.get_base_model()
    for layer in decoder_layers(base):
        for group in groups(layer):
            _hand_over(group, device)
        frozen = {p for m in layer.modules() if isinstance(m, _Frozen) for p in m.parameters()}
        if frozen:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=set(layer.parameters()) - frozen)
        del frozen
    for tensor in chain(model.parameters(), model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
            if (state := getattr(tensor, "quant_state", None)) is not None:
                state.to(device)
    # the root prefetches a layer's weights while the one before computes; it has nothing of its own to divide
    fully_shard(base.base_model, mesh=mesh, ignored_params=set(base.parameters()))
    base.hf_device_map = {"": device}


def is_sharded(model: nn.Module) -> bool:
    return any(isinstance(module, _Frozen) for module in model.modules())


def in_flight_bytes(model: nn.Module) -> int:
    """Most bytes of gathered weights that a device holds at one time."""
    sizes = [
        sum(p.numel() * p.element_size() for m in layer.modules() if isinstance(m, _Frozen) for p in m.parameters())
        for layer in decoder_layers(model)
    ]
    return _LAYERS_IN_FLIGHT * max(sizes, default=0)


def _hand_over(group: Any, device: torch.device) -> None:
    """Move a group's frozen weights to parameters of its first frozen layer, and free the originals."""
    frozen = _Frozen(group.weight, group.absmax)
    del group.weight, group.absmax
    group.__class__, group.frozen = _ShardedLoraGroup, frozen
    group.a_compute, group.b_compute = group.a_compute.to(device), group.b_compute.to(device)
    group.members[0].get_base_layer().frozen = frozen  # on the adapted layer itself, PEFT would save it
    for member in group.members:
        layer = member.get_base_layer()
        layer.weight.data = layer.weight.data.new_empty(0)
        if group.kind and not group.nested:
            layer.weight.quant_state.absmax = layer.weight.quant_state.absmax.new_empty(0)
