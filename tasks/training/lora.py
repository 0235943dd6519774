"""LoRA layers with one fused product each: frozen weight and adapter together, forward and backward.

PEFT's own layers keep adapter weights in float32 and cast every activation up to them, or keep them in bfloat16 and
lose small updates. Here the weights stay float32, which the optimizer needs, and the products run in the compute
dtype on a cast of the small matrices. The fused product also writes the adapter's part into the frozen product's
output instead of a tensor of its own, and remembers the `[tokens, r]` intermediate rather than recomputing it.

The layers stay PEFT's (a subclass), so saving, loading and merging are PEFT's too.
"""

import bitsandbytes.functional as bnb
import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor

_BLOCK = 64  # bitsandbytes' default block of 4-bit weights, the one transformers quantizes with


def _dense(weight: Tensor, absmax: Tensor | None, kind: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """`[out, in]` in `dtype`, from packed 4-bit values ("nf4", "fp4") or as it is ("")."""
    if not kind:
        return weight.to(dtype)
    return torch.ops.bitsandbytes.dequantize_4bit.default(weight, absmax, _BLOCK, kind, shape, dtype)


@torch.library.custom_op("qlora_flow::lora_linear", mutates_args=())
def lora_linear(
    x: Tensor, weight: Tensor, absmax: Tensor | None, kind: str, a: Tensor, b: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """x Wᵀ + scale · (x Aᵀ) Bᵀ.

    Args:
        x: `[..., in]` in the compute dtype.
        weight: the frozen W: packed 4 bits with their `absmax` (kind "nf4" or "fp4"), or `[out, in]` (kind "").
        a: `[r, in]`, b: `[out, r]`, both float32.
    Returns:
        `[..., out]`, and x Aᵀ `[tokens, r]` for the backward pass.
    """
    flat = x.reshape(-1, x.shape[-1])
    out = flat @ _dense(weight, absmax, kind, (b.shape[0], a.shape[1]), x.dtype).t()
    inner = flat @ a.to(x.dtype).t()
    out.addmm_(inner, (b * scale).to(x.dtype).t())
    return out.view(*x.shape[:-1], b.shape[0]), inner


@lora_linear.register_fake
def _(x, weight, absmax, kind, a, b, scale):  # type: ignore[no-untyped-def]
    tokens = x.numel() // x.shape[-1]
    return x.new_empty(*x.shape[:-1], b.shape[0]), x.new_empty(tokens, a.shape[0])


@torch.library.custom_op("qlora_flow::lora_linear_backward", mutates_args=())
def lora_linear_backward(
    grad: Tensor,
    x: Tensor,
    inner: Tensor,
    weight: Tensor,
    absmax: Tensor | None,
    kind: str,
    a: Tensor,
    b: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x (its dtype), a and b (float32)."""
    flat, g = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    dx = g @ _dense(weight, absmax, kind, (b.shape[0], a.shape[1]), x.dtype)
    d_inner = g @ (b * scale).to(x.dtype)
    dx.addmm_(d_inner, a.to(x.dtype))
    da = (d_inner.t() @ flat).float()
    db = (inner.t() @ g).t().to(torch.float32, memory_format=torch.contiguous_format).mul_(scale)
    return dx.view(x.shape), da, db


@lora_linear_backward.register_fake
def _(grad, x, inner, weight, absmax, kind, a, b, scale):  # type: ignore[no-untyped-def]
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(a), torch.empty_like(b)


def _remember(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, absmax, ctx.kind, a, b, ctx.scale = inputs
    ctx.save_for_backward(x, output[1], weight, absmax, a, b)


def _backward(ctx, grad, _):  # type: ignore[no-untyped-def]
    x, inner, weight, absmax, a, b = ctx.saved_tensors
    dx, da, db = lora_linear_backward(grad, x, inner, weight, absmax, ctx.kind, a, b, ctx.scale)
    return dx, None, None, None, da, db, None


lora_linear.register_autograd(_backward, setup_context=_remember)


class _Fused:
    """Forward of an adapted layer whose adapter is plain LoRA; mixed in before PEFT's class."""

    def set_up(self, compute_dtype: torch.dtype, keep_dense: bool) -> None:
        """Read the frozen weight once. `keep_dense`: hold its dequantized values as well (see `base.py`)."""
        layer = self.get_base_layer()  # type: ignore[attr-defined]
        self.kind, self.absmax = "", None
        if isinstance(layer, Linear4bit):
            state = layer.weight.quant_state
            if state.blocksize != _BLOCK:
                raise RuntimeError(f"4-bit blocks of {state.blocksize} values instead of {_BLOCK}")
            self.kind = state.quant_type
            self.absmax = state.absmax.float() if not state.nested else None
        self.dense: Tensor | None = None
        if keep_dense and self.kind:
            self.dense = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(compute_dtype)
        name = self.active_adapters[0]  # type: ignore[attr-defined]
        self.dropout = self.lora_dropout[name]  # type: ignore[attr-defined]
        self.factor = float(self.scaling[name])  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        layer = self.get_base_layer()  # type: ignore[attr-defined]
        a, b = self.lora_A["default"].weight, self.lora_B["default"].weight  # type: ignore[attr-defined]
        if isinstance(self.dropout, torch.nn.Identity):
            if self.dense is not None:
                out, _ = lora_linear(x, self.dense, None, "", a, b, self.factor)
            else:
                out, _ = lora_linear(x, layer.weight, self._absmax(layer), self.kind, a, b, self.factor)
            return out if layer.bias is None else out + layer.bias.to(x.dtype)
        base = layer(x) if self.dense is None else F.linear(x, self.dense, layer.bias)
        inner = F.linear(self.dropout(x), a.to(x.dtype))
        return base + F.linear(inner, (b * self.factor).to(x.dtype))

    def _absmax(self, layer: torch.nn.Module) -> Tensor | None:
        if self.kind and self.absmax is None:  # double quantization: the constants are 8-bit themselves
            state = layer.weight.quant_state
            return bnb.dequantize_blockwise(state.absmax, state.state2).float() + state.offset
        return self.absmax


class FusedLinear4bit(_Fused, PeftLinear4bit):
    """An adapted layer of a base in 4 bits."""


class FusedLinear(_Fused, PeftLinear):
    """An adapted layer of a base in full precision."""


def fuse(model: PeftModel, compute_dtype: torch.dtype, keep_dense: bool) -> int:
    """Turn every plain LoRA layer of `model` into its fused form, in place; DoRA layers keep PEFT's forward.

    Returns:
        the number of layers turned.
    """
    turned = 0
    for module in model.modules():
        for peft_class, fused in ((PeftLinear4bit, FusedLinear4bit), (PeftLinear, FusedLinear)):
            if type(module) is peft_class and not module.lora_variant:
                module.__class__ = fused
                module.set_up(compute_dtype, keep_dense)
                turned += 1
    return turned
