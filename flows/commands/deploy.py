"""Bring work pool, deployments and automations onto the Prefect server that PREFECT_API_URL names."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError
from tasks.store.root import store_root

FILE = Path("deployments/prefect.yaml")
FILLED_IN = re.compile(r"\{\{\s*(?!\$|prefect\.)[\w.\-\[\]$]+\s*\}\}")
"""What Prefect fills in, with nothing if it does not know the name; environment and Prefect's variables are known."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--file", type=Path, default=FILE, metavar="FILE.yaml", help=f"deployments [default {FILE}]")


def main(options: argparse.Namespace) -> int:
    check_file(options.file)
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise UserError("deploy: PREFECT_API_URL names no server; qlora-flow serve starts one and deploys to it.")
    for line in deploy(options.file):
        print(line, flush=True)
    return 0


def check_file(file: Path) -> dict[str, Any]:
    """The deployments of a file, whose data can be found from where the worker will run.

    Raises:
        UserError: it is no such file, or a deployment has a relative path to nothing or a template.
    """
    try:
        content: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
        given = [
            (str(one["name"]), one["work_pool"]["name"], {**(one.get("parameters") or {})})
            for one in content["deployments"]
        ]
        for name, _, parameters in given:
            _check_templates(name, parameters)
            for configuration in _configurations(name, parameters):
                _check_paths(name, configuration)
    except UserError:
        raise
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(
            f"--file: {file} is no file of deployments with name, work_pool and parameters ({why}); run this in the "
            "repository, or name another file."
        ) from error
    return content


def _configurations(name: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Groups and fields that a deployment's runs will have: its own, or those of the files that it names."""
    from flows.config_file import files_of, load

    files = []
    if folder := parameters.get("folder"):
        _must_be_there(name, "folder", folder)
        files = files_of(Path(folder))
    elif file := parameters.get("configuration"):
        _must_be_there(name, "configuration", file)
        files = [Path(file).expanduser()]
    if not files:
        return [parameters]
    own = {group: fields for group, fields in parameters.items() if isinstance(fields, dict)}
    return [{group: fields.model_dump() for group, fields in load(file, own).items()} for file in files]


def _check_templates(name: str, parameters: dict[str, Any]) -> None:
    for group, fields in parameters.items():
        if found := FILLED_IN.search(json.dumps(fields, ensure_ascii=False)):
            raise UserError(
                f"{name}: Prefect takes {found[0]} in {group} for a variable of its own and would empty it. Write "
                "templates into a configuration file, and deploy retrain-file with it, as quick does."
            )


def _check_paths(name: str, groups: dict[str, Any]) -> None:
    from tasks.config import ModelConfig
    from tasks.download.models import looks_local

    data, base = {**groups.get("data", {})}, groups.get("model", {}).get("base", "")
    paths = {f"data.{field}": data.get(field) for field in ("path", "test_path")}
    paths |= {f"data.mix: {source.get('name')}": source.get("path") for source in data.get("mix", [])}
    paths |= {
        f"evaluation.watch: {s.get('name')}": s.get("path") for s in groups.get("evaluation", {}).get("watch", [])
    }
    start = groups.get("training", {}).get("start_from", "")
    if start.startswith(".") or start.count("/") > 1:  # neither the champion nor an adapter of the Hub
        paths["training.start_from"] = start
    if "/" in base and looks_local(ModelConfig.model_construct(base=base)):
        paths["model.base"] = base
    for field, where in paths.items():
        if where and "://" not in str(where):
            _must_be_there(name, field, where)


def _must_be_there(name: str, field: str, where: str) -> None:
    path = Path(str(where)).expanduser()
    if not path.is_absolute() and not any(Path().glob(str(path))):
        raise UserError(
            f"{name}: {field} {where} is not in the folder that is deployed, {Path.cwd()}, where relative paths begin; "
            "write an absolute path that the worker has."
        )


def deploy(file: Path) -> list[str]:
    """Once or again: what is there already is brought up to date. Returns what was done, a line each.

    Raises:
        UserError: Prefect refuses something.
    """
    from flows.automations import apply

    content, done = check_file(file), []
    for pool in {deployment["work_pool"]["name"] for deployment in content["deployments"]}:
        if _prefect("work-pool", "inspect", pool).returncode:
            _must("work-pool", "create", pool, "--type", "process")
            _must("work-pool", "set-concurrency-limit", pool, "1")  # one training at a time on this machine
            done.append(f"work pool {pool}: one run at a time")
    _must("--no-prompt", "deploy", "--all", "--prefect-file", str(file))
    done += [f"deployment {_flow(one['entrypoint'])}/{one['name']}" for one in content["deployments"]]
    return done + apply(file.with_name("automations.yaml"), os.environ.get("QLORA_FLOW_WEBHOOK", ""))


def _flow(entrypoint: str) -> str:
    """Flows are called as their functions are."""
    return entrypoint.rpartition(":")[2].replace("_", "-")


def prefect(*arguments: str) -> list[str]:
    """Prefect's own command line, of this environment."""
    return [sys.executable, "-P", "-m", "prefect", *arguments]


def _prefect(*arguments: str) -> subprocess.CompletedProcess[str]:
    asked_for = {"PWD": str(Path.cwd()), "QLORA_FLOW_STORE": str(store_root())}  # by deployments/prefect.yaml
    environment = {**os.environ, **asked_for}
    return subprocess.run(
        prefect(*arguments), env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def _must(*arguments: str) -> None:
    done = _prefect(*arguments)
    if done.returncode:
        raise UserError(f"prefect {' '.join(arguments)} fails: {' '.join((done.stdout + done.stderr).split())[-1000:]}")
