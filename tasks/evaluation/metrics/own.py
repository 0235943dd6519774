"""A metric of the user's own: `function(predictions: list[str], references: list[list[str]]) -> list[float]`."""

import importlib
import numbers

from tasks.errors import UserError
from tasks.text import visible

LARGEST = 1e100
"""Squares of differences, and their sums, are still numbers."""


def own_scores(name: str, ids: list[str], predictions: list[str], references: list[list[str]]) -> list[float]:
    """The score of each row by `package.module:function`.

    Raises:
        UserError: it raises, or does not return one number a row; metric and row are named.
    """
    module, function = name.split(":")
    call = getattr(importlib.import_module(module), function)

    def scored(rows: slice) -> list[float]:
        return list(call(predictions[rows], [list(texts) for texts in references[rows]]))

    try:
        values = scored(slice(None))
    except (Exception, SystemExit) as error:
        where, why = "on all rows together, but on no single row", error
        for row, id in enumerate(ids):
            try:
                scored(slice(row, row + 1))
            except (Exception, SystemExit) as alone:
                where, why = f"on row {id!r}", alone
                break
        raise UserError(f"evaluation.metrics: {name} fails {where}: {type(why).__name__}: {why}") from error
    if len(values) != len(ids):
        raise UserError(
            f"evaluation.metrics: {name} returned {len(values):,} values for {len(ids):,} rows, {ids[0]!r} to "
            f"{ids[-1]!r}; one number a row is right."
        )
    for id, value in zip(ids, values, strict=True):
        if not (isinstance(value, numbers.Real) and abs(value) < LARGEST):  # false for NaN
            shown = visible(repr(value), 80)
            raise UserError(
                f"evaluation.metrics: {name} returned {shown} for row {id!r}; a number below 1e100 is right."
            )
    return [float(value) for value in values]
