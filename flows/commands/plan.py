"""Show what a run would do and why, without running."""

import argparse

from flows.commands.arguments import add_configuration, configuration
from flows.commands.environment import homes_in_store

add_arguments = add_configuration


def main(options: argparse.Namespace) -> int:
    homes_in_store()
    groups = configuration(options)
    from flows.commands.table import show_planned
    from flows.run.plan import plan

    show_planned(list(plan(groups)))
    return 0
