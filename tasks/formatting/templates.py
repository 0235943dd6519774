"""Templates are data: Jinja2 in a sandbox, checked against the columns before any row is read."""

from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from tasks.errors import UserError

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
        return template.render(row)

    return render
