"""Templates are not trusted: Jinja2 in a sandbox, checked against the columns before any row is read."""

import contextlib
import functools
import json
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from tasks.errors import UserError
from tasks.process.limits import memory_limit

LONGEST_TEXT = 200_000_000
"""Characters of one rendered row: far above any text, so that a runaway loop costs its row and not the machine."""

MOST_STEPS = 1_000_000
"""Numbers that range() may give for one row, so that a loop without output ends at once."""

LONGEST_SECONDS = 10.0
"""Processor time to render one row. It may take twice as long until this is noticed."""

MOST_MEMORY = 2 << 30
"""Bytes that rendering may use in addition to the process's memory."""

TEXT_FILTERS = (
    *("trim", "upper", "lower", "title", "capitalize", "replace", "string", "truncate", "wordwrap"),
    *("indent", "striptags", "escape", "e", "center", "format", "urlize"),
)

Render = Callable[[dict[str, Any]], str]


class Runaway(ValueError):
    """Rendering a row exceeded one of these limits."""


def compile_template(source: str, field: str, columns: set[str]) -> Render:
    """A function from a row to text; an absent value renders as nothing. `row` is the row itself.

    Raises:
        UserError: the template is not Jinja2 or names a column that is not there.
    """
    odd = next((name for name in sorted(columns) if not name.isidentifier()), "")
    hint = f" A column with such a name is written {{{{ row[{json.dumps(odd, ensure_ascii=False)}] }}}}." if odd else ""
    if unknown := names_read(source, field, columns, hint) - columns:
        called = " or ".join(sorted(unknown))
        raise UserError(f"{field}: no column is called {called}; the data has {', '.join(sorted(columns))}.{hint}")
    template = _environment().from_string(source)
    left, limits = [0], Rendering(field)

    def limited_range(*bounds: int) -> range:
        steps = range(*bounds)
        if len(steps) > left[0]:
            raise Runaway(f"{field} loops more than {MOST_STEPS:,} times over the row")
        left[0] -= len(steps)
        return steps

    context = template.new_context()  # one for all rows: making it costs more than rendering
    constants = {**context.parent, "range": limited_range}

    def render(row: dict[str, Any]) -> str:
        context.parent = {**constants, "row": row, **row}
        context.vars.clear()  # what the row before has set
        context.exported_vars.clear()
        left[0] = MOST_STEPS
        parts, length = [], 0
        with limits:
            for part in template.root_render_func(context):
                parts.append(part)
                length += len(part)
                if length > LONGEST_TEXT:
                    raise Runaway(f"{field} makes more than {LONGEST_TEXT:,} characters of the row")
            return "".join(parts)

    return render


def _environment() -> jinja2.Environment:
    """The sandbox. It does not evaluate constants while compiling, because no limits apply then."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        keep_trailing_newline=True, undefined=jinja2.ChainableUndefined, finalize=_finalize, optimized=False
    )
    for name in TEXT_FILTERS:
        environment.filters[name] = _of_text(environment.filters[name])
    environment.filters["tojson"] = _as_json  # Jinja's own is for HTML: it sorts names, and writes \u003c for <
    return environment


def _of_text(filter: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of text for which an absent value is no text, and not the word None."""

    @functools.wraps(filter)
    def of_text(*arguments: Any, **named: Any) -> Any:
        return filter(*("" if each is None else each for each in arguments), **named)

    return of_text


def _as_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(None if isinstance(value, jinja2.Undefined) else value, ensure_ascii=False, indent=indent)


@jinja2.pass_context  # which there is not while it compiles
def _finalize(_: Any, value: Any) -> Any:
    """What `{{ … }}` writes; an object, a list or a method would be written as Python shows it."""
    if value is None or isinstance(value, str | int | float | jinja2.Undefined):
        return "" if value is None else value
    kind = "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else "no value"
    raise TypeError(f"a part of the template is {kind} and no text: name a part of it, or write it with | tojson")


def names_read(source: str, field: str, columns: Collection[str] = (), hint: str = "") -> set[str]:
    """The columns that a template reads, by name or from `row`.

    Args:
        columns: that there are; one called `row` is a column like the others.
        hint: added to what is said of a template that is wrong.
    Raises:
        UserError: it is not Jinja2.
    """
    try:
        environment = _environment()
        tree = environment.parse(source)
        finder = jinja2.meta.TrackingCodeGenerator(environment)  # as find_undeclared_variables, which optimizes
        finder.optimizer = None
        finder.visit(tree)
        environment.compile(tree)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{field}: line {error.lineno} is not valid Jinja2: {error.message}.{hint}") from error
    except RecursionError as error:
        raise UserError(f"{field}: the template is nested too deeply.") from error
    names = finder.undeclared_identifiers
    if "row" not in names or "row" in columns:
        return names
    for item in tree.find_all(jinja2.nodes.Getitem):
        if item.node == jinja2.nodes.Name("row", "load") and isinstance(item.arg, jinja2.nodes.Const):
            names.add(str(item.arg.value))
    return names - {"row"}


class Rendering:
    """`with`: text of a row is made meanwhile, within the limits. A class, since it is entered once a row.

    Renderings are counted, so that a timer sees which one has been at it since its last tick.

    Args:
        what: the template, for messages.
    Raises:
        Runaway: it takes too long, too much memory, or calls itself without end.
    """

    now = ""  # what is rendered at this moment
    count = at_last_tick = 0

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        Rendering.now = self.what
        Rendering.count += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        Rendering.now = ""
        if isinstance(error, MemoryError):
            raise Runaway(f"{self.what} takes more than {MOST_MEMORY >> 30} GiB of memory for the row") from None
        if isinstance(error, RecursionError):
            raise Runaway(f"{self.what} calls itself too often for the row") from None


def _tick(*_: Any) -> None:
    if Rendering.now and Rendering.count == Rendering.at_last_tick:
        raise Runaway(f"{Rendering.now} did not end within {LONGEST_SECONDS:g} s of processor time")
    Rendering.at_last_tick = Rendering.count


@contextlib.contextmanager
def render_limits() -> Iterator[None]:
    """Bound time and memory of what is rendered meanwhile. The timer counts processor time, beside Prefect's own.

    Signals reach the main thread alone; `spread` works in a process of its own where it is called from another one.
    """
    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGVTALRM, _tick)
    signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_SECONDS, LONGEST_SECONDS)
    try:
        with memory_limit(MOST_MEMORY):
            yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
