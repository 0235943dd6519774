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
_GAP = 3  # slots from one live row of a span to the next; computing a row in vain costs less than starting anew


class Unsupported(Exception):
    """The engine does not support this model; the text says why."""


@dataclass
class Places:
    """Where tokens are written; int64 `[tokens]` each.

    Args:
        starts: first place of the token's slot.
        offsets: places from there.
        sizes: places of the slot.
    """

    starts: Tensor
    offsets: Tensor
    sizes: Tensor

    def __post_init__(self) -> None:
        self.all = self.starts + self.offsets

    def lines(self, heads: int) -> Tensor:
        """Numbers of lines in a cache with heads first, int64 `[tokens * heads]`."""
        first = (self.starts * heads + self.offsets)[:, None]
        return (first + self.sizes[:, None] * torch.arange(heads)).flatten()


@dataclass
class Cache:
    """Keys and values of every layer, allocated when a layer first writes.

    `[places, key-value heads, head_dim]` each. With `heads_first`, which CPUs read faster, `[places * heads,
    head_dim]`: a slot of n places has n lines of its first head, then n of its second. They begin as zeros, because
    places that no row has written are read too, and 0 × NaN is NaN.
    """

    places: int
    heads_first: bool = False
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    windows: set[int | None] = field(default_factory=set)  # sliding windows of the layers

    def write(self, layer: int, key: Tensor, value: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Write `[1, key-value heads, tokens, head_dim]`; returns the layer's cache."""
        key, value = (new[0].transpose(0, 1) for new in (key, value))
        if self.heads_first:
            at = places.lines(key.shape[1])
            key, value = key.flatten(0, 1), value.flatten(0, 1)
            size = (self.places * (len(at) // len(places.starts)),)
        else:
            at, size = places.all, (self.places,)
        if layer not in self.layers:
            self.layers[layer] = (key.new_zeros(*size, *key.shape[1:]), value.new_zeros(*size, *value.shape[1:]))
        for kept, new in zip(self.layers[layer], (key, value), strict=True):
            kept.index_copy_(0, at, new)
        return self.layers[layer]

    def bytes_per_token(self) -> int:
        return sum(t.nbytes for pair in self.layers.values() for t in pair) // self.places


@dataclass
class Shared:
    """A pass over what several prompts begin with. It keeps queries, keys and values of every layer.

    Args:
        boundaries, longest: see `Prefill`.
    """

    cache: Cache
    boundaries: Tensor
    longest: int
    layers: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = int(self.boundaries[-1])

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        self.layers[layer] = query, key, value
        return attend_rows(query, key, value, scaling, window, self.boundaries, self.longest)


@dataclass
class Prefill:
    """A pass over packed prompts, without the tokens that they share where those were read before.

    Args:
        places: of all tokens of the prompts.
        boundaries: int32 `[rows + 1]`, first token of each prompt, and the end of the last one.
        longest: tokens of the longest prompt.
        own: int64, which tokens of the prompts the pass reads; None: all.
        whole: int64, for each token of the prompts its number among the shared tokens and then those of the pass.
    """

    cache: Cache
    places: Places
    boundaries: Tensor
    longest: int
    shared: Shared | None = None
    own: Tensor | None = None
    whole: Tensor | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        if self.shared and self.whole is not None:
            pairs = zip(self.shared.layers[layer], (query, key, value), strict=True)
            query, key, value = (torch.cat(pair, 2).index_select(2, self.whole) for pair in pairs)
        self.cache.write(layer, key, value, self.places)
        out = attend_rows(query, key, value, scaling, window, self.boundaries, self.longest)
        return out if self.own is None else out[:, self.own]


@dataclass
class Decode:
    """A pass over one new token of each row. It never waits for a GPU, so that it can be captured in a graph.

    Args:
        starts, sizes: int64 `[rows]`, first place of each row's slot in the cache, and places of the slot.
        lengths: int64 `[rows]`, tokens of each row in the cache, with the new one.
        longest: upper bound of `lengths`.
    """

    cache: Cache
    starts: Tensor
    sizes: Tensor
    lengths: Tensor
    longest: int

    def __post_init__(self) -> None:
        self.places = Places(self.starts, self.lengths - 1, self.sizes)
        self.spans = _spans(self.starts, self.sizes, self.lengths) if self.cache.heads_first else []
        self.offsets = F.pad(self.starts, (0, 1)).int()
        self.used = self.lengths.int()
        self.each = torch.arange(len(self.starts) + 1, dtype=torch.int32, device=self.starts.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        keys, values = self.cache.write(layer, key, value, self.places)
        q = query[0].transpose(0, 1)
        if flash(q):
            return self._flash(q, keys, values, scaling, window)[None]
        # query heads of one key-value head are rows of one product: `[rows, key-value heads, group, head_dim]`
        q = q.reshape(len(q), key.shape[1], -1, q.shape[-1])
        answer = self._side_by_side if self.cache.heads_first else self._gathered
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

    def _side_by_side(
        self, q: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """With heads first: a few products for neighbouring slots together, softmax in float32."""
        out = q.new_empty(*q.shape[:-1], values.shape[-1])
        for span in self.spans:
            k, v = (span.part(each, q.shape[1]) for each in (keys, values))
            scores = q[span.rows] @ k.transpose(2, 3)
            scores = torch.add(span.mask(window), scores, alpha=scaling or q.shape[-1] ** -0.5)
            out[span.live] = (scores.softmax(-1).to(v.dtype) @ v)[span.slots]
        return out

    def _gathered(self, q: Tensor, keys: Tensor, values: Tensor, scaling: float | None, window: int | None) -> Tensor:
        """For dtypes that FlashAttention does not support: the rows are first copied into a padded batch."""
        column = torch.arange(self.longest, device=q.device)
        mask = column < self.lengths[:, None]
        if window is not None:
            mask &= column >= self.lengths[:, None] - window
        seen = (self.starts[:, None] + column).clamp_(max=len(keys) - 1)
        k, v = keys[seen].transpose(1, 2), values[seen].transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None], scale=scaling)


class _Span:
    """Rows of neighbouring slots of one size, which attend together.

    Args:
        live: numbers of the rows, in the order of their slots.
        starts, sizes, lengths: see `Decode`.
    """

    def __init__(self, live: list[int], starts: Tensor, sizes: Tensor, lengths: Tensor) -> None:
        self.live = torch.tensor(live)
        self.start, self.size = int(starts[live[0]]), int(sizes[live[0]])
        self.slots = (starts[self.live] - self.start) // self.size  # counted from the span's first
        self.rows = torch.full((int(self.slots[-1]) + 1,), live[0])  # a slot without a live row repeats the first query
        self.rows[self.slots] = self.live
        self.lengths = lengths[self.rows]
        self.longest = int(self.lengths.max())
        self.masks: dict[int | None, Tensor] = {}

    def part(self, layer: Tensor, heads: int) -> Tensor:
        """`[slots, heads, tokens, head_dim]` of a layer's keys or values."""
        lines = layer[self.start * heads : (self.start + len(self.rows) * self.size) * heads]
        return lines.view(len(self.rows), heads, self.size, -1)[:, :, : self.longest]

    def mask(self, window: int | None) -> Tensor:
        """float32 `[slots, 1, 1, tokens]`, added to scores."""
        if window not in self.masks:
            column, ends = torch.arange(self.longest), self.lengths[:, None]
            seen = (column < ends) & (column >= ends - (window or self.longest))
            self.masks[window] = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)[:, None, None]
        return self.masks[window]


def _spans(starts: Tensor, sizes: Tensor, lengths: Tensor) -> list[_Span]:
    """Rows in spans of slots of one size, with few slots between them whose rows have ended."""
    first, size = starts.tolist(), sizes.tolist()
    groups: list[list[int]] = []
    for row in sorted(range(len(first)), key=first.__getitem__):
        last = groups[-1][-1] if groups else row
        if groups and size[row] == size[last] and first[row] - first[last] <= _GAP * size[row]:
            groups[-1].append(row)
        else:
            groups.append([row])
    return [_Span(rows, starts, sizes, lengths) for rows in groups]


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cached: Shared | Prefill | Decode | None = None,
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
