"""Rows of one optimizer step become flat micro-batches without padding.

A row is never cut. `labels` arrive unshifted (-100: not learnt); a micro-batch holds, for the positions whose next
token is learnt, where they are and what that token is, so that the head runs on those alone.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tasks.tokenization.fill import best_fit

IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One training example: `input_ids` and `labels` are int64 `[length]` on the CPU."""

    input_ids: torch.Tensor
    labels: torch.Tensor

    @property
    def learnt(self) -> int:
        """Tokens that carry loss; the first token has nothing before it to be predicted from."""
        return int((self.labels[1:] != IGNORED).sum())


@dataclass(frozen=True)
class StepRows:
    """What the collator hands to the trainer; not a tensor, so that no library moves or pads it."""

    rows: list[Row]

    @property
    def tokens(self) -> int:
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def learnt(self) -> int:
        return sum(row.learnt for row in self.rows)


@dataclass(frozen=True)
class MicroBatch:
    """Rows end to end: `input_ids`, `position_ids` `[1, tokens]`; `boundaries` int32 `[rows + 1]`;
    `keep` and `targets` int64 `[learnt]`; `longest`: tokens of the longest row."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    boundaries: torch.Tensor
    keep: torch.Tensor
    targets: torch.Tensor
    longest: int


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, StepRows]:
    """Dataset rows with `input_ids` and `labels` to one step's rows."""
    return {"rows": StepRows([Row(*(torch.tensor(e[key]) for key in ("input_ids", "labels"))) for e in examples])}


def pack(rows: Iterable[Row], budget: int) -> list[list[Row]]:
    """Groups of whole rows with at most `budget` tokens, as few and as even as they come; a longer row is alone.

    Even, because a small remainder of a micro-batch leaves a GPU waiting for its launches.
    """
    ordered = sorted(rows, key=lambda row: -len(row.input_ids))
    groups = [[ordered[i] for i in group] for group in best_fit([len(row.input_ids) for row in ordered], budget)]
    even = divide(ordered, len(groups))
    return even if all(sum(len(row.input_ids) for row in group) <= budget for group in even) else groups


def divide(rows: Iterable[Row], parts: int) -> list[list[Row]]:
    """The rows in `parts` lists of about as many tokens each; some stay empty when there are fewer rows than that."""
    lists: list[list[Row]] = [[] for _ in range(parts)]
    sizes = [(0, number) for number in range(parts)]
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        size, smallest = sizes[0]
        lists[smallest].append(row)
        heapq.heapreplace(sizes, (size + len(row.input_ids), smallest))
    return lists


def turns(shares: list[list[Row]], rank: int, budget: int, in_step: bool) -> list[tuple[list[Row], float]]:
    """Micro-batches of process number `rank`, each with the factor of its loss.

    Args:
        shares: the rows of every process.
        budget: most tokens of a micro-batch.
        in_step: all processes must have as many. One that has fewer computes some row again, for nothing (factor 0).
    """
    own = [(group, 1.0) for group in pack(shares[rank], budget)]
    if in_step:
        most = max(len(pack(rows, budget)) for rows in shares)
        shortest = min((row for rows in shares for row in rows), key=lambda row: len(row.input_ids))
        own += [([shortest], 0.0)] * (most - len(own))
    return own


def flatten(rows: Sequence[Row], device: torch.device) -> MicroBatch:
    """One micro-batch on `device`."""
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    following = torch.cat([torch.cat([row.labels[1:], row.labels.new_full((1,), IGNORED)]) for row in rows])
    keep = (following != IGNORED).nonzero().squeeze(1)
    tensors = (
        torch.cat([row.input_ids for row in rows])[None],
        torch.cat([torch.arange(length) for length in lengths.tolist()])[None],
        torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32),
        keep,
        following[keep],
    )
    if device.type == "cuda":  # pinned, so that the copies do not wait for the kernels queued before them
        tensors = tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)  # type: ignore[assignment]
    return MicroBatch(*tensors, longest=int(lengths.max()))
