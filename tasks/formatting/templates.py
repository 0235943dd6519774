"""Templates are data: Jinja2 in a sandbox, checked against the columns before any row is read."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from tasks.errors import UserError

LONGEST_TEXT = 200_000_000
"""Characters of one rendered row: far above any text, so that a runaway loop costs its row and not the machine."""

MOST_STEPS = 1_000_000
"""Numbers that range() gives one row: a loop that writes nothing ends in a blink, not after the seconds below."""

LONGEST_SECONDS = 10.0
"""Processor time of one rendered row."""

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

    left = [0]

    def limited_range(*bounds: int) -> range:
        steps = range(*bounds)
        if len(steps) > left[0]:
            raise ValueError(f"{field} loops more than {MOST_STEPS:,} times over the row")
        left[0] -= len(steps)
        return steps

    template.globals["range"] = limited_range

    def render(row: dict[str, Any]) -> str:
        parts, length = [], 0
        left[0] = MOST_STEPS
        with _time_limit(field):
            for part in template.generate(row):
                parts.append(part)
                length += len(part)
                if length > LONGEST_TEXT:
                    raise ValueError(f"{field} makes more than {LONGEST_TEXT:,} characters of the row")
        return "".join(parts)

    return render


@contextlib.contextmanager
def _time_limit(field: str) -> Iterator[None]:
    """End a loop without end. The timer counts processor time, beside the one of Prefect's timeouts.

    Signals reach the main thread alone; elsewhere the stage's own timeout has to do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise ValueError(f"{field} did not end within {LONGEST_SECONDS:g} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
