"""How rows fill forward passes, told from their lengths alone."""

import bisect
import random
from collections.abc import Mapping, Sequence
from typing import Any

SAMPLE = 1024
"""Rows drawn to see how well they pack."""


def packing(statistics: Mapping[str, Any], micro_batch_tokens: int, batch_size: int) -> str:
    """A sentence about how full forward passes will be."""
    limit = statistics["limit"]
    best = f"sequences of {limit:,} tokens packed from all rows would be {filled(statistics, limit, SAMPLE):.0%} full."
    if not micro_batch_tokens:  # as many as fit is known on the device alone
        return best.capitalize()
    step = filled(statistics, micro_batch_tokens, batch_size)
    rows = f"{batch_size:,} rows a step"
    return f"A forward pass of {micro_batch_tokens:,} tokens will be {step:.0%} full with {rows}; {best}"


def filled(statistics: Mapping[str, Any], capacity: int, rows: int) -> float:
    """Which share of `capacity` tokens a forward pass will hold, when `rows` training rows at a time are packed.

    Rows are drawn at random, and each goes, longest first, into the fullest pass that still holds it.
    """
    by_length, width = statistics["splits"]["train"]["rows_by_length"], statistics["width"]
    if not any(by_length):
        return 0.0
    rows = min(rows, SAMPLE)
    draw = random.Random(0)
    tokens = passes = 0
    for _ in range(max(1, SAMPLE // rows // 4)):
        lengths = draw.choices([n * width for n in range(len(by_length))], by_length, k=rows)
        tokens += sum(min(length, capacity) for length in lengths)
        passes += len(best_fit(sorted(lengths, reverse=True), capacity))
    return tokens / (passes * capacity)


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of `lengths` in groups: each, in their order, goes into the fullest group that still holds it.

    Of groups that are equally full it is the first; a length above `capacity` is alone.
    """
    groups: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # ascending: what a group can still hold, and its number
    for index, length in enumerate(lengths):
        place = bisect.bisect_left(rooms, (length, 0))
        if place == len(rooms):
            groups.append([])
            room, number = max(capacity, length), len(groups) - 1
        else:
            room, number = rooms.pop(place)
        groups[number].append(index)
        bisect.insort(rooms, (room - length, number))
    return groups
