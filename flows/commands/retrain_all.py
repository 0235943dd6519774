"""Run every configuration of a folder on this machine; one that fails does not stop the others."""

import argparse
import sys
from typing import Any

from flows.commands.arguments import a_path
from flows.commands.environment import homes_in_store, local_settings


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=a_path, metavar="FOLDER", help="folder of YAML files, each one a configuration")


def main(options: argparse.Namespace) -> int:
    homes_in_store()
    local_settings()
    from flows.commands.bars import at_work
    from flows.deployed import retrain_all

    with at_work():
        state: Any = retrain_all(str(options.folder), return_state=True)
    print(state.message, file=sys.stderr if state.is_failed() else sys.stdout)
    return int(state.is_failed())
