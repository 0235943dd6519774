"""A metric of the user's own: `function(predictions: list[str], references: list[list[str]]) -> list[float]`."""

import importlib
import math
import numbers
from collections.abc import Callable

from tasks.errors import UserError


def own_scores(name: str, ids: list[str], predictions: list[str], references: list[list[str]]) -> list[float]:
    """What `package.module:function` gives for each row.

    Raises:
        UserError: it raises, or returns anything else than a finite number a row; metric and row are named.
    """
    module, function = name.split(":")
    call = getattr(importlib.import_module(module), function)

    def scored(rows: slice) -> list[float]:
        return list(call(predictions[rows], [list(texts) for texts in references[rows]]))

    try:
        values = scored(slice(None))
    except (Exception, SystemExit) as error:
        alone = _first_to_fail(scored, len(ids))
        row, why = (f"on row {ids[alone[0]]!r}", alone[1]) if alone else ("on all rows, though on none alone", error)
        raise UserError(f"evaluation.metrics: {name} fails {row}: {type(why).__name__}: {why}") from error
    if len(values) != len(ids):
        raise UserError(
            f"evaluation.metrics: {name} returned {len(values):,} values for {len(ids):,} rows, {ids[0]!r} to "
            f"{ids[-1]!r}; one number a row is right."
        )
    for id, value in zip(ids, values, strict=True):
        if not (isinstance(value, numbers.Real) and math.isfinite(value)):
            raise UserError(f"evaluation.metrics: {name} returned {value!r} for row {id!r}; a finite number is right.")
    return [float(value) for value in values]


def _first_to_fail(scored: Callable[[slice], list[float]], rows: int) -> tuple[int, BaseException] | None:
    for row in range(rows):
        try:
            scored(slice(row, row + 1))
        except (Exception, SystemExit) as error:
            return row, error
    return None
