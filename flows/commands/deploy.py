"""Create or update work pool, deployments and automations on the Prefect server that PREFECT_API_URL names."""

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from flows.commands.arguments import a_path
from flows.config_file import files_of, load
from tasks.errors import UserError
from tasks.store.root import at_home, store_root

FILE = Path("deployments/prefect.yaml")
AUTOMATIONS = "automations.yaml"  # beside that file
FILLED_IN = re.compile(r"\{\{\s*(?!\$|prefect\.)[\w.\-\[\]$]+\s*\}\}")
"""Placeholders that Prefect replaces by nothing: names that are neither environment ($…) nor variables of its own."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--file", type=a_path, default=FILE, metavar="FILE.yaml", help=f"deployments [default {FILE}]")


def main(options: argparse.Namespace) -> int:
    check_file(options.file)
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise UserError("deploy: PREFECT_API_URL names no server; qlora-flow serve starts one and deploys to it.")
    print(*deploy(options.file), sep="\n")
    return 0


def check_file(file: Path) -> dict[str, Any]:
    """The content of a file of deployments.

    Raises:
        UserError: it is no such file, or a deployment has a template or a relative path that does not exist here.
    """
    try:
        content: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
        _ = content["deployments"][0]
        for one in content["deployments"]:
            _check(str(one["name"]), one["work_pool"]["name"] and {**(one.get("parameters") or {})})
    except UserError:
        raise
    except (OSError, ValueError, yaml.YAMLError, TypeError, LookupError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(
            f"--file: {file} is no file of deployments with name, work_pool and parameters ({why}); run this in the "
            "repository, or name another file."
        ) from error
    if not file.with_name(AUTOMATIONS).is_file():
        raise UserError(f"--file: {file.with_name(AUTOMATIONS)} is missing; copy deployments/{AUTOMATIONS} there.")
    if not re.match("https?://.|$", os.environ.get("QLORA_FLOW_WEBHOOK", "")):  # it is a secret
        raise UserError("QLORA_FLOW_WEBHOOK takes a URL, which begins with https:// (or http://).")
    return content


def _check(name: str, parameters: dict[str, Any]) -> None:
    for group, fields in parameters.items():
        if found := FILLED_IN.search(json.dumps(fields, ensure_ascii=False)):
            raise UserError(
                f"{name}: Prefect takes {found[0]} in {group} for a variable of its own and would empty it. Write "
                "templates into a configuration file, and deploy retrain-file with it, as quick does."
            )
    named = [(field, parameters[field]) for field in ("folder", "configuration") if parameters.get(field)]
    files = [file for field, where in named for file in files_of(_there(name, field, where))]
    own = {group: fields for group, fields in parameters.items() if isinstance(fields, dict)}
    loaded = [{group: fields.model_dump() for group, fields in load(file, own).items()} for file in files]
    for groups in loaded or [parameters]:
        for field, where in _paths(groups):
            if where and "://" not in str(where):
                _there(name, field, where)


def _paths(groups: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields that may name a path, and their values."""
    from tasks.config import ModelConfig
    from tasks.download.models import looks_local

    data, base = {**groups.get("data", {})}, groups.get("model", {}).get("base", "")
    yield from ((f"data.{field}", data.get(field)) for field in ("path", "test_path"))
    for field, sets in (("data.mix", data.get("mix")), ("evaluation.watch", groups.get("evaluation", {}).get("watch"))):
        yield from ((f"{field}: {each.get('name')}", each.get("path")) for each in sets or ())
    start = groups.get("training", {}).get("start_from", "")
    if start.startswith(".") or start.count("/") > 1:  # neither the champion nor an adapter of the Hub
        yield "training.start_from", start
    if "/" in base and looks_local(ModelConfig.model_construct(base=base)):
        yield "model.base", base


def _there(name: str, field: str, where: Any) -> Path:
    """A path; raises UserError where it is relative and not in the folder that is deployed."""
    there = at_home(str(where), f"{name}: {field}")
    if not there.is_absolute() and not any(Path().glob(str(there))):
        raise UserError(
            f"{name}: {field} {where} is not in the folder that is deployed, {Path.cwd()}, where relative paths begin; "
            "write an absolute path that the worker has."
        )
    return there


def deploy(file: Path) -> list[str]:
    """Once or again: what is there already is brought up to date. Returns what was done, a line each.

    Raises:
        UserError: Prefect refuses something.
    """
    from prefect.client.orchestration import get_client

    from flows.automations import apply

    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except Exception as error:  # of whichever client Prefect uses
        raise UserError(f"The Prefect server that PREFECT_API_URL names cannot be used: {error}") from error
    content, done = check_file(file), []
    for pool in {deployment["work_pool"]["name"] for deployment in content["deployments"]}:
        if _prefect("work-pool", "inspect", pool).returncode:
            _must("work-pool", "create", pool, "--type", "process")
            _must("work-pool", "set-concurrency-limit", pool, "1")  # one training at a time on this machine
            done.append(f"work pool {pool}: one run at a time")
    _must("--no-prompt", "deploy", "--all", "--prefect-file", str(file))
    for one in content["deployments"]:  # flows are called as their functions are
        done.append(f"deployment {one['entrypoint'].rpartition(':')[2].replace('_', '-')}/{one['name']}")
    automations = file.with_name(AUTOMATIONS)
    try:
        return done + apply(automations, os.environ.get("QLORA_FLOW_WEBHOOK", ""))
    except (ValueError, LookupError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{automations} is no file of automations: {type(error).__name__}: {error}") from error


def prefect(*arguments: str) -> list[str]:
    """Prefect's own command line, of this environment."""
    return [sys.executable, "-P", "-m", "prefect", *arguments]


def _prefect(*arguments: str) -> subprocess.CompletedProcess[str]:
    # deployments/prefect.yaml reads both variables
    environment = {**os.environ, "PWD": str(Path.cwd()), "QLORA_FLOW_STORE": str(store_root())}
    command = prefect(*arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def _must(*arguments: str) -> None:
    done = _prefect(*arguments)
    if done.returncode:
        raise UserError(f"prefect {' '.join(arguments)} fails: {' '.join((done.stdout + done.stderr).split()[-100:])}")
