"""Attention over rows packed into one flat sequence: each row attends only to itself.

Importing this module registers the implementation "packed" with transformers. The model is called with one flat batch
`[1, tokens]` and `cu_seq_lens_q` (int32, `[rows + 1]`: where each row begins and the last one ends) and
`max_length_q` among its keyword arguments; transformers hands them down to `attend`.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PretrainedConfig

from tasks.errors import UserError

NAME = "packed"
# their attention can be replaced, but other parts of the layer mix rows
_OTHER_FORWARD = ("phimoe", "modernbert-decoder", "jetmoe", "hrm_text")
# torch before 2.12 supports grouped heads without the flag
_GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    boundaries: Tensor,
    longest: int,
) -> Tensor:
    """Causal attention of packed rows, `[1, tokens, heads, head_dim]`; arguments as in `attend`.

    On a GPU in 16 bits by torch's own FlashAttention kernel for rows of different lengths. Elsewhere row by row and in
    float32, which is more precise and, for rows of up to about a thousand tokens, faster than bfloat16 on CPUs (forward
    and backward of 260 tokens, one thread: 7.5 against 9.6 ms; of 120: 2.0 against 3.8).
    """
    if flash(query):
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        seen = (-1 if sliding_window is None else sliding_window - 1, 0)
        out = varlen_attn(
            q, k, v, boundaries, boundaries, longest, longest, scale=scaling, window_size=seen, **_GROUPED
        )
        assert isinstance(out, Tensor)
        return out.unsqueeze(0)
    rows, lengths = [], boundaries.diff().tolist()
    for q, k, v in zip(*(x.float().split(lengths, dim=2) for x in (query, key, value)), strict=True):
        mask = None
        if sliding_window is not None and sliding_window < q.shape[2]:
            position = torch.arange(q.shape[2], device=q.device)
            distance = position[:, None] - position[None, :]
            mask = (distance >= 0) & (distance < sliding_window)
        options: dict[str, Any] = {"is_causal": mask is None, "enable_gqa": q.shape[1] != k.shape[1]}
        rows.append(F.scaled_dot_product_attention(q, k, v, mask, scale=scaling, **options).transpose(1, 2))
    return torch.cat(rows, dim=1).to(query.dtype)


def flash(query: Tensor) -> bool:
    """Whether torch's FlashAttention kernel takes this query's device and dtype."""
    return query.is_cuda and query.dtype != torch.float32


def check_supported(config: PretrainedConfig) -> None:
    """Raises UserError for an architecture whose layers would mix packed rows, or whose attention is not supported."""
    text, reason = config.get_text_config(), ""
    architecture = AutoModelForCausalLM._model_mapping.get(type(config), None)
    other = set(getattr(text, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if not getattr(architecture, "_supports_attention_backend", False) or config.model_type in _OTHER_FORWARD:
        reason = "has an attention of its own, which does not support packed rows"
    elif other:
        reason = f"has {', '.join(sorted(other))} layers, which do not support packed rows"
    elif getattr(text, "attn_logit_softcapping", None):
        reason = "caps its attention logits, which is not supported"
    if reason:
        raise UserError(f"model type {config.model_type} {reason}")


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # no mask: the row boundaries are enough
