"""A configuration on the command line: the name of the file and a flag for each field."""

import argparse
import json
from pathlib import Path
from typing import Any

from tasks.config import SECTIONS


def add_configuration(command: argparse.ArgumentParser) -> None:
    """CONFIG.yaml and `--group.field VALUE` for every field of tasks/config."""
    command.usage = f"{command.prog} CONFIG.yaml [--group.field VALUE …] [options]"
    command.add_argument("config", type=Path, help="YAML file, such as examples/dialogue-summary.yaml")
    for name, group in SECTIONS.items():
        schema = group.model_json_schema()["properties"]
        fields = command.add_argument_group(name, (group.__doc__ or "").splitlines()[0])
        for field, about in schema.items():
            if "$ref" in about.get("items", {}):  # a list of objects has no flag
                continue
            fields.add_argument(f"--{name}.{field}", metavar=_kind(about), default=argparse.SUPPRESS, help=_help(about))


def configuration(options: argparse.Namespace) -> dict[str, Any]:
    """The flow's parameters from file and flags, with all checks that are possible before a run.

    Raises:
        UserError: a line for every mistake.
    """
    from flows.config_file import load

    groups: dict[str, Any] = dict(load(options.config, overrides(options)))
    from flows.checks import check

    check(groups)
    return groups


def overrides(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Flags → group → field → value; a list is written A,B."""
    given: dict[str, dict[str, Any]] = {}
    for flag, value in vars(options).items():
        group, _, field = flag.partition(".")
        if field:
            is_list = SECTIONS[group].model_json_schema()["properties"][field]["type"] == "array"
            given.setdefault(group, {})[field] = (
                [v.strip() for v in value.split(",") if v.strip()] if is_list else value
            )
    return given


def _kind(about: dict[str, Any]) -> str:
    if "enum" in about:
        return "|".join(map(str, about["enum"]))
    return {"string": "TEXT", "integer": "N", "number": "X", "boolean": "true|false", "array": "A,B"}[about["type"]]


def _help(about: dict[str, Any]) -> str:
    names = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {_number(about[name])}" for name, sign in names.items() if name in about]
    default = about["default"]
    default = _number(default) if type(default) in (int, float) else json.dumps(default, ensure_ascii=False)
    return " ".join([about["description"], f"[{', '.join([*bounds, f'default {default}'])}]"]).replace("%", "%%")


def _number(value: float) -> str:
    """A readable number: 2e-4, 0.05, 1,048,576."""
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{int(value):,}" if value == int(value) else f"{value:,}"
