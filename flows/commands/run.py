"""Run the flow on this machine."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from flows.commands.arguments import a_path, add_configuration, configuration
from flows.commands.environment import homes_in_store, local_settings
from flows.stages import REFRESHABLE
from tasks.errors import UserError
from tasks.process.failures import disk_trouble
from tasks.text import visible_lines


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--summary", type=a_path, metavar="FILE.json", help="write what happened as JSON")
    command.add_argument(
        "--refresh",
        action="append",
        choices=REFRESHABLE,
        metavar="STAGE",
        help=f"run it again: {', '.join(REFRESHABLE)}",
    )
    command.add_argument("--quiet", action="store_true", help="show warnings and errors, and at the end one line")
    command.add_argument("--verify", choices=("full",), help="read every cached file again, also untouched ones")
    add_configuration(command)


def main(options: argparse.Namespace) -> int:
    file: Path | None = options.summary
    if file and (file.is_dir() or not os.access(file if file.exists() else file.absolute().parent, os.W_OK)):
        raise UserError(f"--summary: {file} cannot be written; it takes a file's name in a folder that exists.")
    homes_in_store()
    groups = configuration(options)
    local_settings()
    if options.verify:
        os.environ["QLORA_FLOW_VERIFY"] = options.verify
    from flows.commands.bars import at_work
    from flows.commands.table import show
    from flows.retrain import retrain
    from flows.run.logs import Readable

    if options.refresh:
        _refresh(groups, options.refresh)
    Readable.command_tells = True
    try:
        with at_work(options.quiet):
            summary = retrain(**groups)
    except UserError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except Exception as error:  # Prefect has logged the stack; here is what to read first
        said = disk_trouble(error) or f"{error}\nFinished stages are kept: the same command goes on from there."
        print(f"\nThe run failed: {visible_lines(said)}", file=sys.stderr)
        return 1
    if options.summary:
        options.summary.write_text(json.dumps(summary, indent=2) + "\n")
    if options.quiet:
        print(summary["said"])
    else:
        show(summary)
    return 0


def _refresh(groups: dict[str, Any], stages: list[str]) -> None:
    from flows.clean import exclusively
    from flows.run.plan import plan
    from tasks.store.artifact import discard

    with exclusively():
        for planned in list(plan(groups)):
            if planned.stage in stages and planned.reused and planned.last:
                discard(planned.last.key)
