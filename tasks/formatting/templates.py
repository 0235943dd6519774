"""Templates are data: Jinja2 in a sandbox, checked against the columns before any row is read."""

from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from tasks.errors import UserError

LONGEST_TEXT = 200_000_000
"""Characters of one rendered row: far above any text, so that a runaway loop costs its row and not the machine."""

Render = Callable[[dict[str, Any]], str]


def compile_template(source: str, field: str, columns: set[str]) -> Render:
    """A function from a row to text; an absent value renders as nothing.

    Raises:
        UserError: the template is not Jinja2 or names a column that is not there.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        keep_trailing_newline=True, undefined=jinja2.ChainableUndefined, finalize=lambda v: "" if v is None else v
    )
    try:
        unknown = jinja2.meta.find_undeclared_variables(environment.parse(source)) - columns
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{field}: line {error.lineno} is not valid Jinja2: {error.message}.") from error
    if unknown:
        raise UserError(
            f"{field}: no column is called {' or '.join(sorted(unknown))}; the data has {', '.join(sorted(columns))}."
        )

    def render(row: dict[str, Any]) -> str:
        parts, length = [], 0
        for part in template.generate(row):
            parts.append(part)
            length += len(part)
            if length > LONGEST_TEXT:
                raise ValueError(f"{field} makes more than {LONGEST_TEXT:,} characters of the row")
        return "".join(parts)

    return render
