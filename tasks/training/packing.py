"""Rows of one optimizer step become flat micro-batches without padding. A row is never cut.

Labels arrive unshifted, with IGNORE_INDEX where a token carries no loss. A micro-batch lists the positions whose next
token is a target, and those targets, so that the head runs on these positions only.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tasks.tokenization.fill import best_fit
from tasks.tokenization.schema import IGNORE_INDEX


@dataclass(frozen=True)
class Row:
    """One training example: `input_ids` and `labels` are int64 `[length]` on the CPU."""

    input_ids: torch.Tensor
    labels: torch.Tensor

    @property
    def targets(self) -> int:
        """Number of tokens that carry loss; nothing predicts the first token."""
        return int((self.labels[1:] != IGNORE_INDEX).sum())


@dataclass(frozen=True)
class StepRows:
    """The collator's result: the rows of one step. Not a tensor, so that no library moves or pads it."""

    rows: list[Row]

    @property
    def tokens(self) -> int:
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def targets(self) -> int:
        return sum(row.targets for row in self.rows)


@dataclass(frozen=True)
class MicroBatch:
    """Rows end to end: `input_ids`, `position_ids` `[1, tokens]`; `boundaries` int32 `[rows + 1]`;
    `target_positions` and `targets` int64 `[targets]`; `longest`: tokens of the longest row."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    boundaries: torch.Tensor
    target_positions: torch.Tensor
    targets: torch.Tensor
    longest: int


def collate(examples: Sequence[Mapping[str, Any]]) -> dict[str, StepRows]:
    """One step's rows from data set rows with `input_ids` and `labels`."""
    return {"rows": StepRows([Row(*(torch.tensor(e[key]) for key in ("input_ids", "labels"))) for e in examples])}


def pack(rows: Iterable[Row], budget: int) -> list[list[Row]]:
    """Groups of whole rows with at most `budget` tokens each, as few and as even as possible.

    A row longer than the budget gets its own group. Groups are even because a GPU wastes time on a small last
    micro-batch: kernel launches take longer than its kernels.
    """
    ordered = sorted(rows, key=lambda row: -len(row.input_ids))
    groups = [[ordered[i] for i in group] for group in best_fit([len(row.input_ids) for row in ordered], budget)]
    even = divide(ordered, len(groups))
    return even if all(sum(len(row.input_ids) for row in group) <= budget for group in even) else groups


def divide(rows: Iterable[Row], parts: int) -> list[list[Row]]:
    """The rows in `parts` lists with about equal numbers of tokens; with fewer rows than parts some are empty."""
    lists: list[list[Row]] = [[] for _ in range(parts)]
    sizes = [(0, number) for number in range(parts)]
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        size, smallest = sizes[0]
        lists[smallest].append(row)
        heapq.heapreplace(sizes, (size + len(row.input_ids), smallest))
    return lists


def micro_batches(shares: list[list[Row]], rank: int, budget: int, in_step: bool) -> list[tuple[list[Row], float]]:
    """Micro-batches of process number `rank`, each with the factor of its loss.

    Args:
        shares: the rows of every process.
        budget: largest number of tokens in a micro-batch.
        in_step: all processes need the same number of micro-batches. A process with fewer repeats a row with factor 0.
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
    following = torch.cat([torch.cat([row.labels[1:], row.labels.new_full((1,), IGNORE_INDEX)]) for row in rows])
    positions = (following != IGNORE_INDEX).nonzero().squeeze(1)
    tensors = (
        torch.cat([row.input_ids for row in rows])[None],
        torch.cat([torch.arange(length) for length in lengths.tolist()])[None],
        torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32),
        positions,
        following[positions],
    )
    if device.type == "cuda":  # pinned, so that the copies do not wait for the kernels queued before them
        tensors = tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in tensors)  # type: ignore[assignment]
    return MicroBatch(*tensors, longest=int(lengths.max()))
