"""Reads a YAML file and flags into the flow's parameters. Each mistake is one sentence."""

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tasks.config import SECTIONS, TRUSTED, Section
from tasks.errors import UserError

GROUPS = ", ".join(SECTIONS)
FIELDS = [f"{group}.{field}" for group, model in SECTIONS.items() for field in model.model_fields]


def load(path: Path, overrides: dict[str, dict[str, Any]]) -> dict[str, Section]:
    """Read a configuration; flags override its fields.

    Args:
        path: YAML file with the groups of tasks/config as its top level.
        overrides: group → field → value. A number or boolean may be text, as flags give it.
    Raises:
        UserError: the file is not YAML, or a field is unknown or wrong; every mistake is a line.
    """
    values = _read(path)
    groups: dict[str, Section] = {}
    mistakes = [
        f"{path}: there is no group {name!r}{_did_you_mean(name, [*SECTIONS, *FIELDS])}; the groups are {GROUPS}."
        for name in values.keys() - SECTIONS
    ]
    for name, model in SECTIONS.items():
        given = values.get(name) or {}
        if not isinstance(given, dict):
            mistakes.append(f"{path}: {name} takes fields ({', '.join(model.model_fields)}), not {given!r}.")
            continue
        try:
            groups[name] = model.model_validate(given | _typed(model, overrides.get(name, {})), context=TRUSTED)
        except ValidationError as error:
            mistakes += [sentence_of(name, model, e) for e in error.errors()]
    if mistakes:
        raise UserError(*mistakes)
    return groups


def files_of(path: Path) -> list[Path]:
    """The configurations in a folder, by name; a file is its own."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    return sorted(file for file in path.iterdir() if file.suffix in (".yaml", ".yml"))  # glob hides a refusal


class _Loader(yaml.SafeLoader):
    """YAML 1.2, in which 2e-4 is a number, and yes, 010, 1:30 and 2024-01-01 are text.

    Refuses a key that is given twice; YAML's own loaders keep the last one and drop the first.
    """

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


for _kind, _pattern, _first in (
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("int", "[-+]?(0|[1-9][0-9]*)", [*"-+0123456789"]),
    ("float", r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", [*"-+.0123456789"]),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", [*"-+."]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


def _read(path: Path) -> dict[str, Any]:
    text = ""
    try:
        text = path.read_text("utf-8")
        values = yaml.load(text, _Loader)  # a SafeLoader
    except OSError as error:
        raise UserError(f"The configuration {path} cannot be read: {error.strerror}.") from error
    except RecursionError as error:
        raise UserError(f"The configuration {path} is nested too deeply.") from error
    except (yaml.YAMLError, ValueError) as error:  # no UTF-8, or a number of thousands of digits
        why = " ".join(str(error).split())
        raise UserError(f"The configuration {path} is not YAML: {why}.{_quoting(text, error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"The configuration {path} takes the groups {GROUPS} at its top level.")
    return values


def _quoting(text: str, error: Exception) -> str:
    """Advice if YAML read the braces of a template as its own; empty for any other mistake."""
    marks = [mark for name in ("context_mark", "problem_mark") if (mark := getattr(error, name, None))]
    first, last = (marks[0].line, marks[-1].line + 1) if marks else (0, 0)
    for number, line in enumerate(text.splitlines()[first:last], first + 1):
        if re.search(r"\{[{%]", line):
            return (
                f" Line {number} holds a template: put text with {{{{ }}}} or {{% %}} in quotes (single ones where it "
                "has double ones itself), or on the lines below a |."
            )
    return ""


def _typed(model: type[Section], flags: dict[str, Any]) -> dict[str, Any]:
    """Flags for numbers and booleans, read as YAML."""
    typed = dict(flags)
    for field, value in flags.items():
        if isinstance(value, str) and model.model_fields[field].annotation in (bool, int, float):
            try:
                typed[field] = yaml.load(value, _Loader)
            except (yaml.YAMLError, ValueError):
                continue
    return typed


def no_such_field(group: str, field: Any) -> str:
    fields = SECTIONS[group].model_fields
    return (
        f"{group}.{field}: there is no such field{_did_you_mean(field, [*fields, *FIELDS])}; "
        f"{group} has {', '.join(fields)}."
    )


def no_such_flag(flag: str) -> str:
    return f"{flag}: there is no such flag{_did_you_mean(flag, [f'--{field}' for field in FIELDS])}."


def _did_you_mean(name: Any, names: Iterable[str]) -> str:
    """A suggestion of the most similar name; empty if none is similar."""
    last = {full.rpartition(".")[2]: full for full in reversed(list(names))}
    close = difflib.get_close_matches(str(name).rpartition(".")[2].strip("-").replace("-", "_").lower(), last, 1)
    return f" (did you mean {last[close[0]]}?)" if close else ""


def sentence_of(group: str, model: type[Section], error: Any) -> str:
    """A mistake that pydantic reports in a group, for the person who wrote it."""
    field, *inside = error["loc"] or [""]
    if len(inside) > 1:  # a field of an object in a list
        number, name = inside[0] + 1, inside[1]
        return f"{group}.{field}: {name} of number {number} is wrong: {error['msg'][0].lower()}{error['msg'][1:]}."
    if error["type"] in ("extra_forbidden", "invalid_key"):
        return no_such_field(group, field)
    reason = error["msg"].removeprefix("Value error, ")
    if not field:
        return f"{reason}."
    given = error["input"]
    shown = repr(given) if isinstance(given, str) else json.dumps(given, ensure_ascii=False, default=str)
    if error["type"] == "string_type":
        reason = "empty text is written '', and text that begins with # in quotes" if given is None else "quote it"
    elif error["type"] == "list_type" and isinstance(given, str):
        reason = f"a list is written [{given}]"
    elif isinstance(given, str) and _typed(model, {field: given})[field] != given:
        reason = "write it without quotes"
    about = model.model_fields[str(field)].description
    return f"{group}.{field}: {shown[:100]} is wrong: {reason[0].lower()}{reason[1:]}. It takes: {about}"
