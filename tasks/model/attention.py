"""Attention over rows packed into one flat sequence: each row attends only to itself.

Importing this module registers the implementation "packed" with transformers. The model is called with one flat batch
`[1, tokens]` and `cu_seq_lens_q` (int32, `[rows + 1]`: where each row begins and the last one ends) and
`max_length_q` among its keyword arguments; transformers hands them down to `attend`.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PretrainedConfig

from tasks.errors import UserError

NAME = "packed"
_OTHER_FORWARD = (
    "phimoe",
    "modernbert-decoder",
    "jetmoe",
    "hrm_text",
)  # their attention can be replaced, but other parts of the layer mix rows
# torch before 2.12 supports grouped heads without the flag
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each packed row.

    Args:
        query: `[1, heads, tokens, head_dim]`; key and value the same with the model's number of key-value heads.
        sliding_window: tokens a position sees, itself included; None: all before it.
    Returns:
        `[1, tokens, heads, head_dim]`, and no attention weights.
    Raises:
        UserError: the base needs another attention.
    """
    kind = type(module).__name__
    if cu_seq_lens_q is None or max_length_q is None:
        raise UserError(f"this base's {kind} does not get the boundaries of packed rows, so it would mix them")
    if dropout:
        raise UserError("this base model asks for attention dropout, which packed training does not support")
    if s_aux is not None or not getattr(module, "is_causal", False):
        raise UserError(f"this base's {kind} has attention sinks or is not causal, which is not supported")
    return attend_rows(query, key, value, scaling, sliding_window, cu_seq_lens_q, max_length_q), None


def attend_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    boundaries: torch.Tensor,
    longest: int,
) -> torch.Tensor:
    """Causal attention of packed rows, `[1, tokens, heads, head_dim]`; arguments as in `attend`.

    On a GPU by torch's own FlashAttention kernel for rows of different lengths, in 16 bits.
    """
    if not flash(query):
        return _one_by_one(query, key, value, scaling, sliding_window, boundaries)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    out = varlen_attn(q, k, v, boundaries, boundaries, longest, longest, scale=scaling, window_size=window, **_GROUPED)
    assert isinstance(out, torch.Tensor)
    return out.unsqueeze(0)


def flash(query: torch.Tensor) -> bool:
    """Whether torch's FlashAttention kernel takes this query's device and dtype."""
    return query.is_cuda and query.dtype != torch.float32


def _one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    sliding_window: int | None,
    boundaries: torch.Tensor,
) -> torch.Tensor:
    """Row by row, exact on every device.

    In float32, which is more precise and, for rows of up to about a thousand tokens, faster than bfloat16 on CPUs
    (forward and backward of 260 tokens, one thread: 7.5 against 9.6 ms; of 120: 2.0 against 3.8).
    """
    lengths, dtype = boundaries.diff().tolist(), query.dtype
    rows = []
    for q, k, v in zip(*(x.float().split(lengths, dim=2) for x in (query, key, value)), strict=True):
        mask = _window_mask(q.shape[2], sliding_window, q.device)
        rows.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
            ).transpose(1, 2)
        )
    return torch.cat(rows, dim=1).to(dtype)


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """`[length, length]`, true where a position is seen; None when the window is no narrower than the row."""
    if window is None or window >= length:
        return None
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


def check_supported(config: PretrainedConfig) -> None:
    """Refuse an architecture whose layers would mix packed rows, or whose attention is not supported here.

    Raises:
        UserError: it names what is not supported.
    """
    text = config.get_text_config()
    architecture = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if not getattr(architecture, "_supports_attention_backend", False) or config.model_type in _OTHER_FORWARD:
        raise UserError(
            f"model type {config.model_type} has an attention of its own, which does not support packed rows"
        )
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    if other := kinds - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"model type {text.model_type} has {', '.join(sorted(other))} layers, which do not support packed rows"
        )
    if getattr(text, "attn_logit_softcapping", None):
        raise UserError(f"model type {text.model_type} caps its attention logits, which is not supported")


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # no mask: the row boundaries are enough
