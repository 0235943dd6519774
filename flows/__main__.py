"""The command `qlora-flow`: finds the command's module in flows/commands and calls it."""

import argparse
import importlib.metadata
import io
import os
import signal
import sys

from flows.commands import adapters, clean, deploy, doctor, init, plan, preview, retrain_all, run, serve, try_
from flows.commands.arguments import add_store
from flows.commands.environment import check_store, name_a_home
from flows.config_file import no_such_field, no_such_flag
from tasks.config import SECTIONS
from tasks.errors import UserError
from tasks.process.failures import disk_trouble, is_transient
from tasks.store.manifest import DamagedArtifact
from tasks.text import visible

COMMANDS = (init, run, retrain_all, plan, preview, clean, adapters, try_, doctor, serve, deploy)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the command. Returns the exit status.

    0: done. 1: the run failed. 2: the configuration is wrong, nothing ran.
    """
    _read_and_write_utf8()
    try:
        parser = _parser()
        options, unknown = parser.parse_known_args(arguments)
        if options.store:
            os.environ["QLORA_FLOW_STORE"] = str(options.store)
        _check_fields(unknown)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        check_store()
        name_a_home()
        status: int = options.main(options)
        print(end="", flush=True)  # what goes wrong with the output is said here, not by Python's end
        return status
    except (UserError, DamagedArtifact) as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads the output has read enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("\nInterrupted. Finished stages are kept: the same command goes on from there.", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        if said := disk_trouble(error):
            print(said, file=sys.stderr)
            return 1
        if not (is_transient(error) or isinstance(error, ConnectionError)):
            raise
        print(f"A disk or the network does not answer, nothing ran: {visible(error)}", file=sys.stderr)
        return 1


def _read_and_write_utf8() -> None:
    """Start again with Python's UTF-8 mode if the locale has another encoding. What cannot be printed is escaped."""
    if sys.getfilesystemencoding() != "utf-8":
        os.environ["PYTHONUTF8"] = "1"  # child processes inherit it
        os.execv(sys.executable, sys.orig_argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _check_fields(unknown: list[str]) -> None:
    """Refuse a flag for a field that does not exist, with the sentence that a file gets."""
    for flag in (given.partition("=")[0] for given in unknown if given.startswith("--")):
        group, _, field = flag.removeprefix("--").partition(".")
        if group in SECTIONS and field in SECTIONS[group].model_fields:
            raise UserError(f"{flag}: there is no flag for it; write {group}.{field} into the configuration.")
        raise UserError(no_such_field(group, field) if group in SECTIONS else no_such_flag(flag))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qlora-flow", description="Retrain QLoRA adapters as a cached Prefect flow.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {importlib.metadata.version('qlora-flow')}")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in COMMANDS:
        name, about = module.__name__.rpartition(".")[2].replace("_", "-").rstrip("-"), module.__doc__
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        add_store(command, None)
        module.add_arguments(command)
        command.set_defaults(main=module.main)
    return parser


if __name__ == "__main__":
    sys.exit(main())
