"""The command `qlora-flow`."""

import argparse
import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.config import GROUPS
from tasks.errors import UserError
from tasks.process.failures import full_disk, passes_by_itself
from tasks.text import visible, visible_lines

REFRESHABLE = ("download", "format", "tokenize", "train", "evaluate")  # a published version is never changed


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, call a flow, print what came of it. Returns the exit status.

    0: done. 1: the run failed. 2: the configuration is wrong, nothing ran.
    """
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if options.store:
        os.environ["QLORA_FLOW_STORE"] = str(options.store)
    try:
        _check_fields(unknown)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        _check_store()
        if options.call is not clean:
            _without_home()
        return options.call(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:
        if not (passes_by_itself(error) or isinstance(error, ConnectionError)):
            raise
        print(f"The network does not answer, nothing ran: {visible(error)}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """`qlora-flow run`: the whole flow on this machine."""
    from flows.config_file import load

    groups: dict[str, Any] = dict(load(options.config, _overrides(options)))
    if options.summary and options.summary.is_dir():
        raise UserError(f"--summary: {options.summary} is a folder; it takes the name of a file.")
    if options.summary and not options.summary.absolute().parent.is_dir():
        raise UserError(f"--summary: the folder {options.summary.absolute().parent} does not exist.")
    from flows.checks import check

    check(groups)
    _local_settings()
    if options.verify:
        os.environ["QLORA_FLOW_VERIFY"] = options.verify
    from flows.logs import Readable
    from flows.retrain import retrain
    from flows.server import ensure_server
    from flows.table import show

    if options.refresh:
        _refresh(groups, options.refresh)
    # Prefect hands SIGTERM on to this handler; leaving by it ends what the run started, and says so by its status
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    Readable.command_tells = True
    try:
        ensure_server()
        summary = retrain(**groups)
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. Finished stages are kept: the same command goes on from there.", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:  # Prefect has logged the stack; here is what to read first
        said = full_disk(error) or f"{error}\nFinished stages are kept: the same command goes on from there."
        print(f"\nThe run failed: {visible_lines(said)}", file=sys.stderr)
        return 1
    if options.summary:
        options.summary.write_text(json.dumps(summary, indent=2) + "\n")
    show(summary)
    return 0


def show_plan(options: argparse.Namespace) -> int:
    """`qlora-flow plan`: what a run would do."""
    from flows.config_file import load

    groups: dict[str, Any] = dict(load(options.config, _overrides(options)))
    from flows.checks import check
    from flows.plan import plan
    from flows.table import show_planned

    check(groups)
    show_planned(list(plan(groups)))
    return 0


def clean(options: argparse.Namespace) -> int:
    """`qlora-flow clean`: make room."""
    from flows.clean import clean
    from tasks.store.root import store_root

    if not store_root().is_dir():
        raise UserError(f"There is no store {store_root()}, so nothing was removed; --store takes its folder.")
    removed, freed = clean(options.keep_last, options.dry_run)
    would = "would be " if options.dry_run else ""
    said = f"{len(removed)} results {would}removed, {freed / 2**20:,.1f} MiB {would}freed"
    print(*map(visible, removed), said, sep="\n")
    return 0


def _check_fields(unknown: list[str]) -> None:
    """Refuse a flag that names no field, as a file that does is refused."""
    from flows.config_file import no_such_field, no_such_flag

    for flag in (given.partition("=")[0] for given in unknown if given.startswith("--")):
        group, _, field = flag.removeprefix("--").partition(".")
        raise UserError(no_such_field(group, field) if group in GROUPS else no_such_flag(flag))


def _check_store() -> None:
    from tasks.store.root import store_root

    there = next(path for path in (store_root(), *store_root().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"The store {store_root()} cannot be used: {there} is a file, and a store is a folder.")


def _refresh(groups: dict[str, Any], stages: list[str]) -> None:
    from flows.clean import alone
    from flows.plan import plan
    from tasks.store.artifact import discard

    with alone():
        for planned in list(plan(groups)):
            if planned.stage in stages and planned.reused and planned.last:
                discard(planned.last.key)


def _local_settings() -> None:
    """Prefect as a local run needs it; what the user has set stays. Must come before Prefect is imported."""
    from tasks.store.artifact import store_root

    os.environ.setdefault("PREFECT_RESULTS_LOCAL_STORAGE_PATH", str(store_root() / "results"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "ERROR")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def _without_home() -> None:
    """Where there is no home to write to, what libraries keep there is kept in the store."""
    from tasks.store.root import store_root

    for name, usual in (("PREFECT_HOME", "~/.prefect"), ("HF_HOME", "~/.cache/huggingface")):
        if name not in os.environ and not _can_write(Path(usual)):
            instead = store_root() / name.lower()
            instead.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(instead)


def _can_write(folder: Path) -> bool:
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where this user's home is
        return False
    return os.access(folder, os.W_OK) or (folder / "hub").is_dir()  # models that somebody put there stay in reach


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qlora-flow", description="Retrain QLoRA adapters as a cached Prefect flow.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(dest="command", required=True)
    run_it = _command(commands, "run", run, "run the flow on this machine")
    run_it.add_argument("--summary", type=Path, metavar="FILE.json", help="write what happened as JSON")
    run_it.add_argument(
        "--refresh",
        action="append",
        choices=REFRESHABLE,
        metavar="STAGE",
        help=f"run it again: {', '.join(REFRESHABLE)}",
    )
    run_it.add_argument("--verify", choices=("full",), help="read every cached file again, also untouched ones")
    plan_it = _command(commands, "plan", show_plan, "say what a run would do and why, without running")
    for command in (run_it, plan_it):
        command.usage = f"qlora-flow {command.prog.split()[-1]} CONFIG.yaml [--group.field VALUE …] [options]"
        command.add_argument("config", type=Path, help="YAML file, such as examples/dialogue-summary.yaml")
        _add_fields(command)
    clean_it = _command(commands, "clean", clean, "remove old results that no published version was made from")
    clean_it.add_argument("--keep-last", type=_count, default=3, metavar="N", help="of every stage [default 3]")
    clean_it.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("qlora-flow")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _command(commands: Any, name: str, call: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
    command.add_argument("--store", type=Path, metavar="FOLDER", help="where results are kept (default: .qlora-flow)")
    command.set_defaults(call=call)
    return command


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("takes a whole number from 1")
    return int(text)


def _add_fields(command: argparse.ArgumentParser) -> None:
    for name, group in GROUPS.items():
        schema = group.model_json_schema()["properties"]
        fields = command.add_argument_group(name, (group.__doc__ or "").splitlines()[0])
        for field, about in schema.items():
            fields.add_argument(f"--{name}.{field}", metavar=_kind(about), default=argparse.SUPPRESS, help=_help(about))


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
    """As people write it: 2e-4, 0.05, 1,048,576."""
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


def _overrides(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Flags → group → field → value; a list is written A,B."""
    overrides: dict[str, dict[str, Any]] = {}
    for flag, value in vars(options).items():
        group, _, field = flag.partition(".")
        if field:
            is_list = GROUPS[group].model_json_schema()["properties"][field]["type"] == "array"
            overrides.setdefault(group, {})[field] = (
                [v.strip() for v in value.split(",") if v.strip()] if is_list else value
            )
    return overrides


if __name__ == "__main__":
    sys.exit(main())
