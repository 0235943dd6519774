"""Estimates from row lengths how full forward passes will be."""

import bisect
import random
from collections.abc import Mapping, Sequence
from typing import Any

SAMPLE = 1024
"""Rows that are drawn for the estimate."""


def packing(statistics: Mapping[str, Any], micro_batch_tokens: int, batch_size: int) -> str:
    """A sentence about how full forward passes will be."""
    limit = statistics["limit"]
    best = f"sequences of {limit:,} tokens packed from all rows would be {filled(statistics, limit, SAMPLE):.0%} full."
    if not micro_batch_tokens:  # how many tokens fit is only known on the device
        return best.capitalize()
    step = filled(statistics, micro_batch_tokens, batch_size)
    rows = f"{batch_size:,} rows a step"
    return f"A forward pass of {micro_batch_tokens:,} tokens will be {step:.0%} full with {rows}; {best}"


def filled(statistics: Mapping[str, Any], capacity: int, rows: int) -> float:
    """Mean fill of forward passes of `capacity` tokens, if `rows` training rows at a time are packed into them.

    Rows are drawn at random. The longest is packed first, each into the fullest pass that still has room for it.
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
    """Indices of `lengths` in groups: each length, in order, goes into the fullest group that still has room for it.

    Of equally full groups the first is taken. A length above `capacity` gets its own group.
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
