"""A configuration on the command line: the name of the file and a flag for each field. Paths on it."""

import argparse
from pathlib import Path
from typing import Any

from flows.config_file import load
from tasks.config import SECTIONS
from tasks.store.root import impossible


def a_path(text: str) -> Path:
    """The `type` of options that take a path, which may begin with ~."""
    if why := impossible(text):
        raise argparse.ArgumentTypeError(f"{text[:100]!r} is no path: {why}")
    return Path(text).expanduser()


def add_store(command: argparse.ArgumentParser, default: str | None) -> None:
    about = "where results are kept (default: .qlora-flow)"
    command.add_argument("--store", type=a_path, default=default, metavar="FOLDER", help=about)


def add_configuration(command: argparse.ArgumentParser) -> None:
    """CONFIG.yaml and `--group.field VALUE` for every field of tasks/config."""
    command.usage = f"{command.prog} CONFIG.yaml [--group.field VALUE …] [options]"
    command.add_argument("config", type=a_path, help="YAML file, such as examples/dialogue-summary.yaml")
    for name, group in SECTIONS.items():
        schema = group.model_json_schema()["properties"]
        fields = command.add_argument_group(name, (group.__doc__ or "").splitlines()[0])
        for field, about in schema.items():
            if "$ref" in about.get("items", {}):  # a list of objects has no flag
                continue
            fields.add_argument(
                f"--{name}.{field}",
                metavar=_kind(about),
                default=argparse.SUPPRESS,
                help=about["description"].replace("%", "%%"),
            )


def configuration(options: argparse.Namespace) -> dict[str, Any]:
    """The flow's parameters from file and flags, with all checks that are possible before a run.

    Raises:
        UserError: a line for every mistake.
    """
    from flows.checks import check  # imports pyarrow

    groups: dict[str, Any] = dict(load(options.config, overrides(options)))
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


def count(text: str) -> int:
    """Type of a flag that takes a whole number from 1."""
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError("takes a whole number from 1 to 999,999,999")
    return int(text)


def _kind(about: dict[str, Any]) -> str:
    if "enum" in about:
        return "|".join(map(str, about["enum"]))
    return {"string": "TEXT", "integer": "N", "number": "X", "boolean": "true|false", "array": "A,B"}[about["type"]]
