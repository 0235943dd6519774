"""Writes configuration.md from the models of tasks/config.

python docs/configuration.py
"""

import json
from pathlib import Path
from typing import Any

from tasks.config import SECTIONS, Section

PAGE = Path(__file__).with_suffix(".md")
HEAD = """\
<!-- Written by `make docs` from tasks/config; edit that. -->
# Configuration

A configuration is a YAML file with these groups at its top level. Each field is also a flag
(`--training.learning_rate 1e-4`), and each group is a parameter of the flow in the Prefect UI. A list is written
`[a, b]` in YAML and `a,b` as a flag. Unknown fields and values of another type are refused, and so are fields that
contradict each other; the message says what is wrong and what the field takes.
"""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "array": "list"}


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *(_group(name, group) for name, group in SECTIONS.items())])


def _group(name: str, group: type[Section]) -> str:
    fields = group.model_json_schema()["properties"]
    meaning = {field: about.description for field, about in group.model_fields.items()}
    lines = [
        f"## {name}",
        "",
        (group.__doc__ or "").strip(),
        "",
        "| field | type | default | meaning |",
        "|---|---|---|---|",
        *(
            f"| `{field}` | {_cell(_type(about))} | {_default(about)} | {_cell(meaning[field] or '')} |"
            for field, about in fields.items()
        ),
        "",
    ]
    for field, about in fields.items():
        if _is_long(about):
            lines += [f"Default of `{name}.{field}`:", "", f"```text\n{about['default']}\n```", ""]
    return "\n".join(lines)


def _type(about: dict[str, Any]) -> str:
    if "enum" in about:
        return ", ".join(f"`{choice}`" for choice in about["enum"])
    bounds = [f"{sign} {about[name]:,}" for name, sign in BOUNDS.items() if name in about]
    if about.get("minLength") or about.get("minItems"):
        bounds.append("not empty")
    if "pattern" in about:
        bounds.append(f"matches `{about['pattern']}`")
    return ", ".join([TYPES[about["type"]], *bounds])


def _is_long(about: dict[str, Any]) -> bool:
    return isinstance(about["default"], str) and about["default"].count("\n") > 2


def _default(about: dict[str, Any]) -> str:
    if _is_long(about):
        return "below"
    return f"`{json.dumps(about['default'], ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
