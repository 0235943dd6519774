"""Attention over a cache in which each row's keys and values are contiguous, without padding.

Importing this module registers the attention implementation "cached" with transformers. The model is called with one
packed batch `[1, tokens]` and the keyword argument `cached`, a `Prefill` or `Decode`, which transformers passes to
`attend`. transformers builds no mask for an implementation that has no mask function.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from tasks.model.attention import attend_rows, flash

NAME = "cached"


class Unsupported(Exception):
    """The engine does not support this model; the text says why."""


@dataclass
class Cache:
    """Keys and values of every layer, `[places, key-value heads, head_dim]` each, allocated when a layer first writes.

    They begin as zeros, because `_gathered` also reads places that no row has written, and 0 × NaN is NaN.
    """

    places: int
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    windows: set[int | None] = field(default_factory=set)  # sliding windows of the layers

    def write(self, layer: int, key: Tensor, value: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Write `[tokens, key-value heads, head_dim]` at `places` (int64, `[tokens]`); returns the layer's cache."""
        if layer not in self.layers:
            self.layers[layer] = (
                key.new_zeros(self.places, *key.shape[1:]),
                value.new_zeros(self.places, *value.shape[1:]),
            )
        for kept, new in zip(self.layers[layer], (key, value), strict=True):
            kept.index_copy_(0, places, new)
        return self.layers[layer]

    def bytes_per_token(self) -> int:
        return sum(t[0].numel() * t.itemsize for pair in self.layers.values() for t in pair)


@dataclass
class Prefill:
    """A pass over packed prompts.

    Args:
        places: int64 `[tokens]`, each token's place in the cache.
        boundaries: int32 `[rows + 1]`, first token of each prompt, and the end of the last one.
        longest: tokens of the longest prompt.
    """

    cache: Cache
    places: Tensor
    boundaries: Tensor
    longest: int

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        self.cache.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self.places)
        return attend_rows(query, key, value, scaling, window, self.boundaries, self.longest)


@dataclass
class Decode:
    """A pass over one new token of each row. It never waits for a GPU, so that it can be captured in a graph.

    Args:
        starts: int64 `[rows]`, first place of each row in the cache.
        lengths: int64 `[rows]`, tokens of each row in the cache, with the new one.
        longest: upper bound of `lengths`.
    """

    cache: Cache
    starts: Tensor
    lengths: Tensor
    longest: int

    def __post_init__(self) -> None:
        self.places = self.starts + self.lengths - 1
        self.spans: list[tuple[int, int]] = []
        if not self.starts.is_cuda:
            self.spans = list(zip(self.starts.tolist(), (self.places + 1).tolist(), strict=True))
        self.offsets = F.pad(self.starts, (0, 1)).int()
        self.used = self.lengths.int()
        self.each = torch.arange(len(self.starts) + 1, dtype=torch.int32, device=self.starts.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        keys, values = self.cache.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self.places)
        q = query[0].transpose(0, 1)
        if flash(q):
            return self._flash(q, keys, values, scaling, window)[None]
        # query heads of one key-value head are rows of one product: `[rows, key-value heads, group, head_dim]`
        q = q.reshape(len(q), keys.shape[1], -1, q.shape[-1])
        answer = self._gathered if q.is_cuda else self._row_by_row
        return answer(q, keys, values, scaling, window).flatten(1, 2)[None]

    def _flash(self, q: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None) -> Tensor:
        """torch's FlashAttention kernel: it reads no empty place, and the keys of a group of query heads once.

        `varlen_attn`, its public function, has the lengths (`seqused_k`) only from torch 2.12 on.
        """
        left, right = (-1, -1) if window is None else (window - 1, 0)
        return torch.ops.aten._flash_attention_forward(
            q,
            keys,
            values,
            self.each,
            self.offsets,
            1,
            self.longest,
            0.0,
            False,
            False,
            scale=scaling,
            window_size_left=left,
            window_size_right=right,
            seqused_k=self.used,
        )[0]

    def _row_by_row(self, q: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None) -> Tensor:
        """For CPUs, where starting an operation costs little."""
        rows = []
        for row, (start, end) in zip(q, self.spans, strict=True):
            seen = slice(start if window is None else max(start, end - window), end)
            k, v = keys[seen].transpose(0, 1), values[seen].transpose(0, 1)
            rows.append(F.scaled_dot_product_attention(row[None], k[None], v[None], scale=scaling))
        return torch.cat(rows)

    def _gathered(self, q: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None) -> Tensor:
        """For dtypes that FlashAttention does not support: the rows are first copied into a padded batch."""
        column = torch.arange(self.longest, device=q.device)
        mask = column < self.lengths[:, None]
        if window is not None:
            mask &= column >= self.lengths[:, None] - window
        seen = (self.starts[:, None] + column).clamp_(max=len(keys) - 1)
        k, v = keys[seen].transpose(1, 2), values[seen].transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], scale=scaling)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cached: Prefill | Decode | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row over itself; shapes as in `tasks.model.attention.attend`.

    Raises:
        Unsupported: the base has another kind of attention.
    """
    if cached is None or s_aux is not None or not getattr(module, "is_causal", False):
        raise Unsupported(f"{type(module).__name__} computes its attention in another way")
    cached.cache.windows.add(sliding_window)
    return cached.attend(int(module.layer_idx), query, key, value, scaling, sliding_window), None  # type: ignore[arg-type]


AttentionInterface.register(NAME, attend)
