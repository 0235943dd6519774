"""Shortens a row that is too long, and keeps instruction, answer and end-of-sequence token."""

from collections.abc import Callable
from typing import Any, Literal

from tasks.config import TokenizationConfig
from tasks.tokenization.vocabulary import Vocabulary

Cut = Literal["middle", "left", "right"]


def fit(
    row: dict[str, Any], ids: list[int], answer: int, excess: int, config: TokenizationConfig, vocabulary: Vocabulary
) -> tuple[list[int], int] | None:
    """The row's ids without at least `excess` tokens, and the index of its answer; None if the strategy cannot do that.

    No character is divided.

    Args:
        ids: the whole row, from the tokens that begin it to the one that ends it.
        answer: index of the answer's first token.
    """
    if config.too_long == "drop" or (config.too_long == "truncate_prompt" and row["input_start"] is None):
        return None
    before = len(vocabulary.prefix)
    offsets = vocabulary.offsets(row["prompt"] + row["completion"])

    def between(index: int) -> bool:
        """Whether a character begins at this token."""
        index -= before
        return not 0 < index < len(offsets) or offsets[index][0] >= offsets[index - 1][1]

    if config.too_long == "truncate_completion":
        keep = len(ids) - 1 - excess
        while keep > answer and not between(keep):
            keep -= 1
        return ([*ids[:keep], vocabulary.eos], answer) if keep > answer else None
    start, end = row["input_start"], row["input_end"]
    inside = [n for n, (a, b) in enumerate(offsets, before) if b > a and a >= start and b <= end and n < answer]
    shorter = shorten(ids, inside[0], inside[-1] + 1, excess, config.cut, between) if inside else None
    return None if shorter is None else (shorter, answer - len(ids) + len(shorter))


def shorten(
    ids: list[int], start: int, end: int, excess: int, cut: Cut, between: Callable[[int], bool] = lambda _: True
) -> list[int] | None:
    """Take `excess` tokens, or a few more, out of ids[start:end]; None when that part is not longer than that.

    Args:
        between: whether what goes may begin or end before this index.

    >>> shorten([1, 2, 3, 4, 5, 6], 1, 5, 2, "middle")
    [1, 2, 5, 6]
    """
    if excess >= end - start:
        return None
    keep = end - start - excess
    first = {"left": start, "right": start + keep, "middle": start + (keep + 1) // 2}[cut]
    last = first + excess
    while first > start and not between(first):
        first -= 1
    while last < end and not between(last):
        last += 1
    return None if (first, last) == (start, end) else ids[:first] + ids[last:]
