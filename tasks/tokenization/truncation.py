"""A row that is too long: which of its tokens go, so that instruction, answer and end-of-sequence stay."""

from typing import Literal

Cut = Literal["middle", "left", "right"]


def shorten(ids: list[int], start: int, end: int, excess: int, cut: Cut) -> list[int] | None:
    """Take `excess` tokens out of ids[start:end]; None when that part is not longer than that.

    >>> shorten([1, 2, 3, 4, 5, 6], 1, 5, 2, "middle")
    [1, 2, 5, 6]
    """
    if excess >= end - start:
        return None
    keep = end - start - excess
    first = {"left": start, "right": start + keep, "middle": start + (keep + 1) // 2}[cut]
    return ids[:first] + ids[first + excess :]
