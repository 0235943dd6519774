"""Remove old results and versions that nobody needs."""

import argparse

from flows.commands.arguments import count
from tasks.errors import UserError
from tasks.store.root import store_root
from tasks.text import visible


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--keep-last",
        type=count,
        default=3,
        metavar="N",
        help="results of a stage, versions of an adapter [default 3]",
    )
    command.add_argument(
        "--keep-days",
        type=count,
        default=30,
        metavar="N",
        help="age at which versions that were never in use, and abandoned checkpoints, are removed [default 30]",
    )
    command.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")


def main(options: argparse.Namespace) -> int:
    from flows.clean import clean

    if not store_root().is_dir():
        raise UserError(f"There is no store {store_root()}, so nothing was removed; --store takes its folder.")
    removed, freed = clean(options.keep_last, options.keep_days, options.dry_run)
    would = "would be " if options.dry_run else ""
    said = f"{len(removed)} results {would}removed, {freed / 2**20:,.1f} MiB {would}freed"
    print(*map(visible, removed), said, sep="\n")
    return 0
