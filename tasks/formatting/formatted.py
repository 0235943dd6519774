"""A row as the model sees it, whichever style made it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

LARGEST_WHOLE = 1e15
"""Below it a float is exact, and written without an exponent."""


class Formatted(NamedTuple):
    """A prompt and what is learnt after it."""

    prompt: str
    completion: str  # the text to learn
    answer: str  # the same as evaluation sees it: without ending and special tokens
    learnt: Sequence[tuple[int, int]] = ()  # parts of the prompt that are learnt too, in characters
    notes: Sequence[tuple[str, str]] = ()  # what is not in these texts as the row has it: reason and detail


def plain(value: Any) -> Any:
    """A value as its own row had it, whatever the other rows hold.

    Parquet gives every object the names that others have, and makes a whole number a float where others are none.
    """
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < LARGEST_WHOLE else value
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if item is not None}
    return [plain(item) for item in value] if isinstance(value, list) else value


Format = Callable[[dict[str, Any]], Formatted]
"""Raises ValueError with the reason when the row cannot be formatted."""
