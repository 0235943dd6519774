"""A row as the model sees it, whichever style made it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

LARGEST_WHOLE = 1e15
"""Below it a float is exact, and written without an exponent."""


class Formatted(NamedTuple):
    """A prompt and what is learnt after it."""

    prompt: str
    completion: str  # the text to learn
    answer: str  # the same as a reader sees it, without ending or control tokens
    learnt: Sequence[tuple[int, int]] = ()  # parts of the prompt that are learnt too, in characters
    only_last: str = ""  # why earlier answers are not learnt, where that is so


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
