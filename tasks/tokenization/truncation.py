"""A row that is too long: which of its tokens go, so that instruction, answer and end-of-sequence stay."""

from typing import Any, Literal

from tasks.config import TokenizationConfig
from tasks.tokenization.vocabulary import Vocabulary

Cut = Literal["middle", "left", "right"]


def fit(
    row: dict[str, Any],
    prompt: list[int],
    answer: list[int],
    excess: int,
    config: TokenizationConfig,
    vocabulary: Vocabulary,
) -> tuple[list[int], list[int]] | None:
    """Prompt and answer with `excess` tokens less, or None when the strategy cannot make them fit."""
    if config.too_long == "drop":
        return None
    if config.too_long == "truncate_completion":
        keep = len(answer) - 1 - excess
        return (prompt, [*answer[:keep], vocabulary.eos]) if keep > 0 else None
    if row["input_start"] is None:
        return None
    inside = vocabulary.inside(row["prompt"], [(row["input_start"], row["input_end"])])  # no instruction goes
    if not inside:
        return None
    shorter = shorten(prompt, inside[0], inside[-1] + 1, excess, config.cut)
    return None if shorter is None else (shorter, answer)


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
