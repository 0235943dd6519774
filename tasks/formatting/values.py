"""A row's values as its source had them, so that its text does not depend on the other rows."""

from typing import Any

_EXACT = 2**53  # whole numbers that a double holds


def as_given(value: Any) -> Any:
    """Undo what one Parquet type for a column does to its values.

    Objects have every name that one of them has, the absent ones as null; whole numbers beside fractions have become
    fractions.

    >>> as_given([{"a": 5.0, "b": None}, {"a": 2.5}])
    [{'a': 5}, {'a': 2.5}]
    """
    if isinstance(value, dict):
        return {name: as_given(part) for name, part in value.items() if part is not None}
    if isinstance(value, list):
        return [as_given(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else value
