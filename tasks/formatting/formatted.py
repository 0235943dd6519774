"""A formatted row, the same for all styles."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Formatted(NamedTuple):
    """A prompt and the text that is learnt after it."""

    prompt: str
    completion: str  # the text to learn
    answer: str  # the same as evaluation sees it: without ending and special tokens
    learnt: Sequence[tuple[int, int]] = ()  # parts of the prompt that are learnt too, in characters
    notes: Sequence[tuple[str, str]] = ()  # what is not in these texts as the row has it: reason and detail
    input: tuple[int, int] | None = None  # where the input column stands in the prompt, in characters


Format = Callable[[dict[str, Any]], Formatted]
"""Raises ValueError with the reason when the row cannot be formatted."""
