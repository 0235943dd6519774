"""LoRA layers that compute frozen weight and adapter in one operation, forward and backward.

PEFT keeps adapter weights in float32 and casts every activation to float32, or keeps them in bfloat16 and loses small
updates. Here the weights stay float32, which the optimizer needs. Products use copies of A and B in the compute dtype,
which are renewed once a step. Layers that read the same input (q, k, v; gate, up) are one operation: the input is
read once for all A matrices, with one dropout mask. The layers are subclasses of PEFT's, so PEFT saves, loads and
merges them.

DoRA layers multiply that product by magnitude / |W + scale · B A|, row by row. PEFT computes this norm in every forward
pass, from dequantized weights and the large product B A. It changes only with the weights, so here it is computed once
a step, without B A.
"""

from typing import Any

import bitsandbytes.functional as bnb
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor

_BLOCK = 64  # bitsandbytes' default block of 4-bit weights, the one transformers quantizes with
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers that read the same input


def _dense(weight: Tensor, absmax: Tensor | None, kind: str, shape: tuple[int, int], x: Tensor) -> Tensor:
    """`[out, in]` in x's dtype, from packed 4-bit values ("nf4", "fp4") or as it is ("")."""
    if not kind:
        return weight.to(x.dtype)
    return torch.ops.bitsandbytes.dequantize_4bit.default(weight, absmax, _BLOCK, kind, shape, x.dtype)


def _forward(
    x: Tensor,
    dropped: Tensor | None,
    inner: Tensor,
    weight: Tensor,
    absmax: Tensor | None,
    kind: str,
    a: list[Tensor],
    b: list[Tensor],
    a_compute: Tensor,
    b_compute: Tensor,
    scale: float,
) -> Tensor:
    """x Wᵀ + scale · (d Aᵀ) Bᵀ for n layers that read x, their rows one under the other: `[..., out]`.

    Args:
        x: `[..., in]` in the compute dtype.
        dropped: d, x after dropout, where there is one; an argument for its gradient only.
        inner: scale · d Aᵀ, `[tokens, n r]`. The caller computes it, so that activation checkpointing can repeat it
            without the large product.
        weight: the frozen W: packed 4 bits with their `absmax` (kind "nf4" or "fp4"), or `[out, in]` (kind "").
        a, b: the n adapters' float32 weights, `[r, in]` and `[out, r]`; arguments for their gradients only.
        a_compute: scale · A, `[n r, in]`; b_compute: B, block-diagonal `[out, n r]`; both in the compute dtype.
    """
    out = inner @ b_compute.t()
    out.addmm_(x.reshape(-1, x.shape[-1]), _dense(weight, absmax, kind, (b_compute.shape[0], x.shape[-1]), x).t())
    return out.view(*x.shape[:-1], out.shape[-1])


def _backward_products(
    grad: Tensor,
    seen: Tensor,
    apart: bool,
    inner: Tensor,
    weight: Tensor,
    absmax: Tensor | None,
    kind: str,
    a_compute: Tensor,
    b_compute: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and of its dropout output in their dtype, of all A `[n r, in]` in float32, and of B `[out, n r]`
    in the compute dtype, whose blocks outside the diagonal are to be ignored.

    Args:
        seen: what A was multiplied by.
        apart: whether `seen` is another tensor than x; if not, x gets both gradients and the second result is empty.
    """
    flat, g = seen.reshape(-1, seen.shape[-1]), grad.reshape(-1, grad.shape[-1])
    d_inner = g @ b_compute
    dense = _dense(weight, absmax, kind, (g.shape[1], seen.shape[-1]), seen)
    d_seen = d_inner @ a_compute
    if apart:
        dx, d_seen = g @ dense, d_seen.view(seen.shape)
    else:
        dx, d_seen = d_seen.addmm_(g, dense), seen.new_empty(0)
    da = torch.empty(a_compute.shape, dtype=torch.float32, device=seen.device)
    torch.mul(d_inner.t() @ flat, scale, out=da)
    # on CPUs the other way round, which is several times faster there
    db = g.t() @ inner if g.is_cuda else (inner.t() @ g).t().contiguous()
    return dx.view(seen.shape), d_seen, da, db


_library = torch.library.Library("qlora_flow", "DEF")  # not `custom_op`: its checks cost more than a small kernel
for _name, _function in (("lora_linear", _forward), ("lora_linear_backward", _backward_products)):
    _library.define(torch.library.infer_schema(_function, mutates_args=(), op_name=_name))
    _library.impl(_name, _function, "CompositeExplicitAutograd")


@torch.library.register_fake("qlora_flow::lora_linear")
def _(x, dropped, inner, weight, absmax, kind, a, b, a_compute, b_compute, scale):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], b_compute.shape[0])


@torch.library.register_fake("qlora_flow::lora_linear_backward")
def _(grad, seen, apart, inner, weight, absmax, kind, a_compute, b_compute, scale):  # type: ignore[no-untyped-def]
    da, db = torch.empty_like(a_compute, dtype=torch.float32), torch.empty_like(b_compute)
    return seen.new_empty(seen.shape), seen.new_empty(seen.shape if apart else 0), da, db


def _remember(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, dropped, inner, weight, absmax, ctx.kind, a, b, a_compute, b_compute, ctx.scale = inputs
    ctx.rank, ctx.widths = a[0].shape[0], [small.shape[0] for small in b]
    ctx.apart = dropped is not None
    ctx.save_for_backward(dropped if ctx.apart else x, inner, weight, absmax, a_compute, b_compute)


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    seen, inner, weight, absmax, a_compute, b_compute = ctx.saved_tensors
    dx, d_seen, da, db = torch.ops.qlora_flow.lora_linear_backward(
        grad, seen, ctx.apart, inner, weight, absmax, ctx.kind, a_compute, b_compute, ctx.scale
    )
    das = [part.clone() for part in da.split(ctx.rank)]
    columns = db.split(ctx.widths)
    dbs = [b[:, i * ctx.rank : (i + 1) * ctx.rank].float().contiguous() for i, b in enumerate(columns)]
    return dx, d_seen if ctx.apart else None, None, None, None, None, das, dbs, None, None, None


torch.library.register_autograd("qlora_flow::lora_linear", _backward, setup_context=_remember)


class LoraGroup:
    """Adapted layers that read the same input. They are computed together when the first of them is called.

    Their frozen weights move into one tensor, and each layer's own weight becomes a view of it.
    """

    def __init__(self, members: list[Any]) -> None:
        self.members, first = members, members[0]
        self.pending: list[Tensor] = []
        self.input: Tensor | None = None
        self.kind, self.factor = first.kind, first.factor
        rank, self.widths = first.lora_A["default"].weight.shape[0], [m.out_features for m in members]
        weights = [m.get_base_layer().weight for m in members]
        self.weight = weights[0].data
        if len(members) > 1:
            self.weight = torch.cat([weight.data for weight in weights])
            for weight, part in zip(weights, self.weight.split([len(w.data) for w in weights]), strict=True):
                weight.data = part
        self.nested = [w.quant_state for w in weights] if self.kind and weights[0].quant_state.nested else []
        self.absmax: Tensor | None = None
        if self.kind and not self.nested:
            self.absmax = torch.cat([w.quant_state.absmax.float() for w in weights])
            counts = [w.quant_state.absmax.numel() for w in weights]
            for weight, part in zip(weights, self.absmax.split(counts), strict=True):
                weight.quant_state.absmax = part
        options = {"dtype": first.compute_dtype, "device": self.weight.device}
        self.a_compute = torch.zeros(rank * len(members), first.in_features, **options)
        self.b_compute = torch.zeros(sum(self.widths), rank * len(members), **options)
        self.norms: Tensor | None = None  # of the rows of DoRA layers' adapted weights, `[out]` in float32
        if first.lora_magnitude_vector:
            self.frozen_squares = self.dense().float().square().sum(1)
            self.norms = torch.empty_like(self.frozen_squares)

    def _absmax(self) -> Tensor | None:
        """The 4-bit weights' block constants, dequantized where double quantization has them in 8 bits."""
        if not self.nested:
            return self.absmax
        return torch.cat([bnb.dequantize_blockwise(q.absmax, q.state2).float() + q.offset for q in self.nested])

    def dense(self) -> Tensor:
        """The members' frozen weights, dequantized: `[out, in]` in the compute dtype."""
        shape = (sum(self.widths), self.a_compute.shape[1])
        return _dense(self.weight, self._absmax(), self.kind, shape, self.a_compute)

    def keep_dense(self) -> None:
        """Keep the dequantized weights and compute with them from now on; the values are the same."""
        self.weight, self.absmax, self.kind, self.nested = self.dense(), None, "", []

    def renew_norms(self) -> None:
        """Norms of the rows of W + scale · B A, for DoRA: |w|² + 2 w·(ba) + |ba|², computed without B A.

        Rounded to the compute dtype, as PEFT does when it initializes a magnitude and when it uses an adapter.
        """
        if self.norms is not None:
            a, b = self.a_compute.float(), self.b_compute.float()
            mixed = ((self.dense() @ self.a_compute.t()).float() * b).sum(1)
            norms = (self.frozen_squares + 2 * mixed + ((b @ (a @ a.t())) * b).sum(1)).sqrt()
            self.norms.copy_(norms.to(self.a_compute.dtype))

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Every member's output for x, without bias; without the adapter where PEFT's `disable_adapter` is on."""
        first = self.members[0]
        if first.disable_adapters:
            out = torch.nn.functional.linear(x, self.dense().to(x.dtype))
        else:
            dropout = first.lora_dropout["default"]
            dropped = None if isinstance(dropout, torch.nn.Identity) or not first.training else dropout(x)
            inner = (x if dropped is None else dropped).detach().reshape(-1, x.shape[-1]) @ self.a_compute.t()
            weight = (self.weight, self._absmax(), self.kind)
            a = [m.lora_A["default"].weight for m in self.members]
            b = [m.lora_B["default"].weight for m in self.members]
            out = torch.ops.qlora_flow.lora_linear(
                x, dropped, inner, *weight, a, b, self.a_compute, self.b_compute, self.factor
            )
        return out.split(self.widths, dim=-1) if len(self.widths) > 1 else (out,)

    def output(self, member: int, x: Tensor) -> Tensor:
        """One member's output. Members must be called in order and with the same x."""
        if member == 0:
            first, *others = self.outputs(x)
            if others:
                self.pending = others
                if not torch.compiler.is_compiling():
                    self.input = x
            return first
        if not torch.compiler.is_compiling() and self.input is not x:
            raise RuntimeError("layers of one group were given different inputs")
        out = self.pending[member - 1]
        if member == len(self.members) - 1:
            self.pending, self.input = [], None
        return out

    def copies(self, member: int) -> tuple[Tensor, Tensor]:
        """Views of a member's A and B in the compute-dtype copies."""
        rank = self.a_compute.shape[0] // len(self.members)
        own_rows, own_columns = self.b_compute.split(self.widths)[member], slice(member * rank, (member + 1) * rank)
        return self.a_compute[own_columns], own_rows[:, own_columns]


class _Fused:
    """Mixin that replaces the forward of PEFT's layer."""

    group: LoraGroup
    member: int

    def set_up(self: Any, compute_dtype: torch.dtype) -> None:
        """Read the quantization of the frozen weight."""
        weight = self.get_base_layer().weight
        self.kind, self.compute_dtype = "", compute_dtype
        if isinstance(self.get_base_layer(), Linear4bit):
            if weight.quant_state.blocksize != _BLOCK:
                raise RuntimeError(f"4-bit blocks of {weight.quant_state.blocksize} values instead of {_BLOCK}")
            self.kind = weight.quant_state.quant_type
        self.factor = float(self.scaling["default"])

    def forward(self: Any, x: Tensor) -> Tensor:
        out, bias = self.group.output(self.member, x), self.get_base_layer().bias
        if self.lora_magnitude_vector and not self.disable_adapters:
            # in float32: bfloat16 would lose small steps of the magnitude
            norms = self.group.norms.split(self.group.widths)[self.member]
            factor = self.lora_magnitude_vector["default"].weight / norms
            out = (out * factor).to(x.dtype)
        return out if bias is None else out + bias.to(x.dtype)


class FusedLinear4bit(_Fused, PeftLinear4bit): ...


class FusedLinear(_Fused, PeftLinear): ...


def fuse(model: PeftModel, compute_dtype: torch.dtype) -> None:
    """Turn every adapted layer of `model` into its fused form, in place."""
    fused: dict[Any, Any] = {PeftLinear4bit: FusedLinear4bit, PeftLinear: FusedLinear}
    for layer in list[Any](model.modules()):
        if type(layer) in fused:
            layer.__class__ = fused[type(layer)]
            layer.set_up(compute_dtype)
    for parent in list(model.modules()):
        children = {name: child for name, child in parent.named_children() if isinstance(child, _Fused)}
        together = [[children.pop(n) for n in names] for names in _SIBLINGS if children.keys() >= set(names)]
        for members in [*together, *([child] for child in children.values())]:
            group = LoraGroup(members)
            for number, member in enumerate(members):
                member.group, member.member = group, number
    refresh(model)


def groups(model: torch.nn.Module) -> list[LoraGroup]:
    """The groups of a model or a part of it, in the order of its layers."""
    return list(dict.fromkeys(m.group for m in model.modules() if isinstance(m, _Fused)))


@torch.no_grad()
def refresh(model: torch.nn.Module) -> None:
    """Renew the compute-dtype copies of the adapters' weights; needed whenever the weights have changed."""
    copies, weights, scales = list[Tensor](), list[Tensor](), list[float]()
    for group in groups(model):
        for number, layer in enumerate(group.members):
            copies += group.copies(number)
            weights += [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
            scales += [group.factor, 1.0]
    if copies:
        torch._foreach_copy_(copies, weights)
        torch._foreach_mul_(copies, scales)
    for group in groups(model):
        group.renew_norms()
