"""The command `qlora-flow`."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from tasks.config import GROUPS
from tasks.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, call a flow, print what came of it. Returns the exit status.

    0: done. 1: the run failed. 2: the configuration is wrong, nothing ran.
    """
    options = _parser().parse_args(arguments)
    try:
        return run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """`qlora-flow run`: the whole flow on this machine."""
    from flows.config_file import load

    groups: dict[str, Any] = dict(load(options.config, _overrides(options)))
    if options.store:
        os.environ["QLORA_FLOW_STORE"] = str(options.store)
    _local_settings()
    from flows.retrain import retrain
    from flows.table import show

    try:
        summary = retrain(**groups)
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    if options.summary:
        options.summary.write_text(json.dumps(summary, indent=2) + "\n")
    show(summary)
    return 0


def _local_settings() -> None:
    """Prefect as a local run needs it; what the user has set stays. Must come before Prefect is imported."""
    from tasks.store.artifact import store_root

    os.environ.setdefault("PREFECT_RESULTS_LOCAL_STORAGE_PATH", str(store_root() / "results"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "ERROR")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qlora-flow", description="Retrain QLoRA adapters as a cached Prefect flow.")
    commands = parser.add_subparsers(dest="command", required=True)
    usage = "qlora-flow run CONFIG.yaml [--group.field VALUE …] [--summary FILE.json] [--store FOLDER]"
    command = commands.add_parser("run", help="run the flow on this machine", allow_abbrev=False, usage=usage)
    command.add_argument("config", type=Path, help="YAML file, such as examples/dialogue-summary.yaml")
    command.add_argument("--summary", type=Path, metavar="FILE.json", help="write what happened as JSON")
    command.add_argument("--store", type=Path, metavar="FOLDER", help="where results are kept (default: .qlora-flow)")
    for name, group in GROUPS.items():
        schema = group.model_json_schema()["properties"]
        fields = command.add_argument_group(name, (group.__doc__ or "").splitlines()[0])
        for field, about in schema.items():
            fields.add_argument(f"--{name}.{field}", metavar=_kind(about), default=argparse.SUPPRESS, help=_help(about))
    return parser


def _kind(about: dict[str, Any]) -> str:
    if "enum" in about:
        return "|".join(map(str, about["enum"]))
    return {"string": "TEXT", "integer": "N", "number": "X", "boolean": "true|false", "array": "A,B"}[about["type"]]


def _help(about: dict[str, Any]) -> str:
    names = {"minimum": "≥", "maximum": "≤", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {about[name]:g}" for name, sign in names.items() if name in about]
    default = json.dumps(about["default"], ensure_ascii=False)
    return " ".join([about["description"], f"[{', '.join([*bounds, f'default {default}'])}]"]).replace("%", "%%")


def _overrides(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Flags → group → field → value; a list is written A,B."""
    overrides: dict[str, dict[str, Any]] = {}
    for flag, value in vars(options).items():
        group, _, field = flag.partition(".")
        if field:
            is_list = GROUPS[group].model_json_schema()["properties"][field]["type"] == "array"
            overrides.setdefault(group, {})[field] = [v for v in value.split(",") if v] if is_list else value
    return overrides


if __name__ == "__main__":
    sys.exit(main())
