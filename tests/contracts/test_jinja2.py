"""Jinja2: one context for all rows, whose parts are set for each of them."""

from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

TEXT = "{% set kept = a %}{{ a }}{{ kept }}{% for n in range(2) %}{{ n }}{% endfor %}"


def rendered(template: Any, context: Any) -> str:
    return "".join(template.root_render_func(context))


def test_parent_of_a_context_holds_the_row_and_what_is_known_everywhere() -> None:
    template = ImmutableSandboxedEnvironment().from_string(TEXT)
    context = template.new_context()
    constants = context.parent
    assert "range" in constants
    found = []
    for row in ("x", "y"):
        context.parent = {**constants, "a": row}
        context.vars.clear()
        context.exported_vars.clear()
        found.append(rendered(template, context))
    assert found == ["xx01", "yy01"]


def test_vars_and_exported_vars_hold_what_a_row_has_set() -> None:
    template = ImmutableSandboxedEnvironment().from_string("{{ kept }}{% set kept = 1 %}{{ kept }}")
    context = template.new_context()
    assert rendered(template, context) == "1"
    assert context.vars == {"kept": 1} and context.exported_vars == {"kept"}
    context.vars.clear()
    context.exported_vars.clear()
    assert rendered(template, context) == "1"


def test_range_of_the_parent_is_the_one_that_is_called() -> None:
    template = ImmutableSandboxedEnvironment().from_string("{% for n in range(3) %}{{ n }}{% endfor %}")
    context = template.new_context()
    context.parent = {**context.parent, "range": lambda stop: [stop]}
    assert rendered(template, context) == "3"


def test_root_render_func_gives_the_text_in_parts() -> None:
    """So that a text that never ends is noticed."""
    template = ImmutableSandboxedEnvironment().from_string("{% for n in range(10) %}{{ n }}{% endfor %}")
    parts = template.root_render_func(template.new_context())
    assert next(parts) == "0" and next(parts) == "1"


@pytest.mark.parametrize("text", ["{{ a.__class__ }}{{ a.__class__.__mro__ }}", "{{ a.append(1) }}", "{{ a.clear() }}"])
def test_immutable_sandboxed_environment_refuses_attributes_and_changes(text: str) -> None:
    a: list[int] = []
    with pytest.raises(jinja2.exceptions.SecurityError):
        ImmutableSandboxedEnvironment().from_string(text).render(a=a)
    assert a == []


def test_getitem_of_a_name_is_found_in_the_tree() -> None:
    tree = ImmutableSandboxedEnvironment().parse("{{ row['a b'] }}{{ c }}")
    (item,) = tree.find_all(jinja2.nodes.Getitem)
    assert item.node == jinja2.nodes.Name("row", "load")
    assert isinstance(item.arg, jinja2.nodes.Const) and item.arg.value == "a b"
    assert jinja2.meta.find_undeclared_variables(tree) == {"row", "c"}
