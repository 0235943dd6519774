"""LoRA layers with one fused product each: frozen weight and adapter together, forward and backward.

PEFT's own layers keep adapter weights in float32 and cast every activation up to them, or keep them in bfloat16 and
lose small updates. Here the weights stay float32, which the optimizer needs, and the products run on a copy of the
small matrices in the compute dtype, renewed once a step. Layers that read the same input (q, k, v; gate, up) are one
operation, so their input is read once for all their A matrices. The layers stay PEFT's (a subclass), so saving,
loading and merging are PEFT's too.
"""

from typing import Any

import bitsandbytes.functional as bnb
import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor

_BLOCK = 64  # bitsandbytes' default block of 4-bit weights, the one transformers quantizes with
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers that read the same input

_library = torch.library.Library("qlora_flow", "DEF")  # not `custom_op`: its checks cost more than a small kernel
_library.define(
    "lora_linear(Tensor x, Tensor[] weights, Tensor[] absmax, str kind, Tensor[] a, Tensor[] b, Tensor a_compute, "
    "Tensor[] b_compute, float scale) -> Tensor[]"
)
_library.define(
    "lora_linear_backward(Tensor[] grads, Tensor x, Tensor inner, Tensor[] weights, Tensor[] absmax, str kind, "
    "Tensor a_compute, Tensor[] b_compute, float scale) -> Tensor[]"
)


def _dense(weight: Tensor, absmax: list[Tensor], i: int, kind: str, shape: tuple[int, int], x: Tensor) -> Tensor:
    """`[out, in]` in x's dtype, from packed 4-bit values ("nf4", "fp4") or as it is ("")."""
    if not kind:
        return weight.to(x.dtype)
    return torch.ops.bitsandbytes.dequantize_4bit.default(weight, absmax[i], _BLOCK, kind, shape, x.dtype)


def _forward(
    x: Tensor,
    weights: list[Tensor],
    absmax: list[Tensor],
    kind: str,
    a: list[Tensor],
    b: list[Tensor],
    a_compute: Tensor,
    b_compute: list[Tensor],
    scale: float,
) -> list[Tensor]:
    """x Wᵀ + scale · (x Aᵀ) Bᵀ for each of n layers that read x.

    Args:
        x: `[..., in]` in the compute dtype.
        weights: the frozen W: packed 4 bits with their `absmax` (kind "nf4" or "fp4"), or `[out, in]` (kind "").
        a, b: the adapters' float32 weights, `[r, in]` and `[out, r]`; only their gradients are of interest here.
        a_compute: scale · A of all layers one under the other, `[n r, in]`; b_compute: B; in the compute dtype.
    Returns:
        n outputs `[..., out]`, and last scale · x Aᵀ `[tokens, n r]` for the backward pass.
    """
    flat = x.reshape(-1, x.shape[-1])
    inner = flat @ a_compute.t()
    outputs = []
    for i, (small, part) in enumerate(zip(b_compute, inner.chunk(len(b_compute), 1), strict=True)):
        dense = _dense(weights[i], absmax, i, kind, (small.shape[0], x.shape[-1]), x)
        # the adapter's part first: the large product then adds to it while it waits for its own arithmetic anyway
        out = part @ small.t()
        out.addmm_(flat, dense.t())
        outputs.append(out.view(*x.shape[:-1], small.shape[0]))
    return [*outputs, inner]


def _backward_products(
    grads: list[Tensor],
    x: Tensor,
    inner: Tensor,
    weights: list[Tensor],
    absmax: list[Tensor],
    kind: str,
    a_compute: Tensor,
    b_compute: list[Tensor],
    scale: float,
) -> list[Tensor]:
    """Gradients: for x in its dtype, then for every a, then for every b, in float32."""
    flat = x.reshape(-1, x.shape[-1])
    flats = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
    d_inner = torch.empty_like(inner)
    for g, small, out in zip(flats, b_compute, d_inner.chunk(len(grads), 1), strict=True):
        torch.mm(g, small, out=out)
    dx = d_inner @ a_compute
    for i, g in enumerate(flats):
        dx.addmm_(g, _dense(weights[i], absmax, i, kind, (g.shape[1], x.shape[-1]), x))
    da = torch.empty(a_compute.shape, dtype=torch.float32, device=x.device)
    torch.mul(d_inner.t() @ flat, scale, out=da)
    db = [_product_by_tokens(g, part).float() for g, part in zip(flats, inner.chunk(len(grads), 1), strict=True)]
    return [dx.view(x.shape), *(part.clone() for part in da.chunk(len(grads))), *db]


def _product_by_tokens(g: Tensor, inner: Tensor) -> Tensor:
    """gᵀ · inner, `[out, r]`; on CPUs the other way round, which is several times faster there."""
    return g.t() @ inner if g.is_cuda else (inner.t() @ g).t().contiguous()


_library.impl("lora_linear", _forward, "CompositeExplicitAutograd")
_library.impl("lora_linear_backward", _backward_products, "CompositeExplicitAutograd")


@torch.library.register_fake("qlora_flow::lora_linear")
def _(x, weights, absmax, kind, a, b, a_compute, b_compute, scale):  # type: ignore[no-untyped-def]
    tokens = x.numel() // x.shape[-1]
    return [*(x.new_empty(*x.shape[:-1], s.shape[0]) for s in b_compute), x.new_empty(tokens, a_compute.shape[0])]


@torch.library.register_fake("qlora_flow::lora_linear_backward")
def _(grads, x, inner, weights, absmax, kind, a_compute, b_compute, scale):  # type: ignore[no-untyped-def]
    rank = a_compute.shape[0] // len(grads)
    full = {"dtype": torch.float32, "device": x.device}
    return [
        x.new_empty(x.shape),
        *(torch.empty(rank, x.shape[-1], **full) for _ in grads),
        *(torch.empty(s.shape[0], rank, **full) for s in b_compute),
    ]


def _remember(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weights, absmax, ctx.kind, a, _, a_compute, b_compute, ctx.scale = inputs
    ctx.layers, ctx.quantized = len(a), len(absmax)
    ctx.save_for_backward(x, output[-1], a_compute, *weights, *absmax, *b_compute)


def _backward(ctx, grads):  # type: ignore[no-untyped-def]
    x, inner, a_compute, *rest = ctx.saved_tensors
    n, q = ctx.layers, ctx.quantized
    weights, absmax, b_compute = rest[:n], rest[n : n + q], rest[n + q :]
    dx, *small = torch.ops.qlora_flow.lora_linear_backward(
        list(grads[:n]), x, inner, weights, absmax, ctx.kind, a_compute, b_compute, ctx.scale
    )
    return dx, [None] * n, [None] * q, None, small[:n], small[n:], None, [None] * n, None


torch.library.register_autograd("qlora_flow::lora_linear", _backward, setup_context=_remember)


class Group:
    """Adapted layers that read the same input and are computed together when the first of them is called."""

    def __init__(self, members: list[Any]) -> None:
        self.members = members
        self.pending: list[Tensor] = []
        self.input: Tensor | None = None
        first = members[0]
        rank, dtype = first.lora_A["default"].weight.shape[0], first.compute_dtype
        device = first.lora_A["default"].weight.device
        self.a_compute = torch.zeros(rank * len(members), first.in_features, dtype=dtype, device=device)

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Every member's output for x, without bias."""
        members, first = self.members, self.members[0]
        frozen = [m.frozen() for m in members]
        outputs = torch.ops.qlora_flow.lora_linear(
            x,
            [weight for weight, _ in frozen],
            [absmax for _, absmax in frozen if absmax is not None],
            first.kind if first.dense is None else "",
            [m.lora_A["default"].weight for m in members],
            [m.lora_B["default"].weight for m in members],
            self.a_compute,
            [m.b_compute for m in members],
            first.factor,
        )
        return list(outputs[: len(members)])

    def output(self, member: int, x: Tensor) -> Tensor:
        """One member's output; members are called in order and with the same x."""
        if member == 0:
            outputs = self.outputs(x)
            if len(outputs) > 1:
                self.pending = outputs[1:]
                if not torch.compiler.is_compiling():
                    self.input = x
            return outputs[0]
        if not torch.compiler.is_compiling() and self.input is not x:
            raise RuntimeError("layers taken for siblings were given different inputs")
        out = self.pending[member - 1]
        if member == len(self.members) - 1:
            self.pending, self.input = [], None
        return out


class _Fused:
    """Forward of an adapted layer whose adapter is plain LoRA; mixed in before PEFT's class."""

    group: Group
    member: int

    def set_up(self: Any, compute_dtype: torch.dtype, keep_dense: bool) -> None:
        """Read the frozen weight once. `keep_dense`: hold its dequantized values as well (see `base.py`)."""
        layer = self.get_base_layer()
        self.kind, self.compute_dtype = "", compute_dtype
        self.absmax: Tensor | None = None
        self.dense: Tensor | None = None
        if isinstance(layer, Linear4bit):
            state = layer.weight.quant_state
            if state.blocksize != _BLOCK:
                raise RuntimeError(f"4-bit blocks of {state.blocksize} values instead of {_BLOCK}")
            self.kind = state.quant_type
            self.absmax = None if state.nested else state.absmax.float()
            if keep_dense:
                self.dense = bnb.dequantize_4bit(layer.weight.data, state).to(compute_dtype)
        self.factor = float(self.scaling["default"])
        self.b_compute = self.lora_B["default"].weight.detach().to(compute_dtype)

    def frozen(self: Any) -> tuple[Tensor, Tensor | None]:
        """The frozen weight and, when it is in 4 bits, its constants."""
        if self.dense is not None:
            return self.dense, None
        weight = self.get_base_layer().weight
        if self.kind and self.absmax is None:  # double quantization: the constants are 8-bit themselves
            state = weight.quant_state
            return weight, bnb.dequantize_blockwise(state.absmax, state.state2).float() + state.offset
        return weight, self.absmax

    def forward(self: Any, x: Tensor) -> Tensor:
        layer = self.get_base_layer()
        dropout = self.lora_dropout["default"]
        if isinstance(dropout, torch.nn.Identity) or not self.training:
            out = self.group.output(self.member, x)
            return out if layer.bias is None else out + layer.bias.to(x.dtype)
        a, b = self.lora_A["default"].weight, self.lora_B["default"].weight
        base = layer(x) if self.dense is None else F.linear(x, self.dense, layer.bias)
        inner = F.linear(dropout(x), a.to(x.dtype))
        return base + F.linear(inner, (b * self.factor).to(x.dtype))


class FusedLinear4bit(_Fused, PeftLinear4bit):
    """An adapted layer of a base in 4 bits."""


class FusedLinear(_Fused, PeftLinear):
    """An adapted layer of a base in full precision."""


def fuse(model: PeftModel, compute_dtype: torch.dtype, keep_dense: bool) -> None:
    """Turn every plain LoRA layer of `model` into its fused form, in place; DoRA layers keep PEFT's forward."""
    for module in model.modules():
        for peft_class, fused in ((PeftLinear4bit, FusedLinear4bit), (PeftLinear, FusedLinear)):
            if type(module) is peft_class and not module.lora_variant:
                module.__class__ = fused
                module.set_up(compute_dtype, keep_dense)
    for parent in list(model.modules()):
        children = {name: child for name, child in parent.named_children() if isinstance(child, _Fused)}
        together = [[children.pop(n) for n in names] for names in _SIBLINGS if children.keys() >= set(names)]
        for members in [*together, *([child] for child in children.values())]:
            group = Group(members)
            for number, member in enumerate(members):
                member.group, member.member = group, number
    refresh(model)


@torch.no_grad()
def refresh(model: torch.nn.Module) -> None:
    """Renew the compute-dtype copies of the adapters' weights; due whenever the weights changed."""
    copies, weights, scales = [], [], []
    for module in model.modules():
        if isinstance(module, FusedLinear4bit | FusedLinear):
            part = module.group.a_compute.chunk(len(module.group.members))[module.member]
            copies += [part, module.b_compute]
            weights += [module.lora_A["default"].weight, module.lora_B["default"].weight]
            scales += [module.factor, 1.0]
    if copies:
        torch._foreach_copy_(copies, weights)
        torch._foreach_mul_(copies, scales)
