"""Bring work pool, deployments and automations onto the Prefect server that PREFECT_API_URL names."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tasks.errors import UserError

FILE = Path("deployments/prefect.yaml")


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
        UserError: it is no such file, or a deployment has a relative path to nothing.
    """
    from tasks.config import DataConfig, ModelConfig
    from tasks.download.models import looks_local

    try:
        content: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
        found = [
            (str(one["name"]), one["work_pool"]["name"], {**(one.get("parameters") or {})})
            for one in content["deployments"]
        ]
        groups = [(name, {**given.get("data", {})}, {**given.get("model", {})}) for name, _, given in found]
    except (OSError, ValueError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(
            f"--file: {file} is no file of deployments with name, work_pool and parameters ({why}); run this in the "
            "repository, or name another file."
        ) from error
    for name, data_given, model_given in groups:
        data, model = DataConfig.model_construct(**data_given), ModelConfig.model_construct(**model_given)
        paths = {"data.path": data.path, "data.test_path": data.test_path}
        paths |= {f"data.mix: {source.get('name')}": source.get("path", "") for source in data_given.get("mix", [])}
        if looks_local(model) and "/" in model.base:
            paths["model.base"] = model.base
        for field, where in paths.items():
            path = Path(str(where)).expanduser()
            if where and "://" not in str(where) and not path.is_absolute() and not any(Path().glob(str(path))):
                raise UserError(
                    f"{name}: {field} {where} is not in the folder that is deployed, {Path.cwd()}, where "
                    "relative paths begin; write an absolute path that the worker has."
                )
    return content


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
    done += [f"deployment {deployment['name']}" for deployment in content["deployments"]]
    return done + apply(file.with_name("automations.yaml"), os.environ.get("QLORA_FLOW_WEBHOOK", ""))


def prefect(*arguments: str) -> list[str]:
    """Prefect's own command line, of this environment."""
    return [sys.executable, "-P", "-m", "prefect", *arguments]


def _prefect(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PWD": str(Path.cwd())}  # which deployments/prefect.yaml asks for
    return subprocess.run(
        prefect(*arguments), env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def _must(*arguments: str) -> None:
    done = _prefect(*arguments)
    if done.returncode:
        raise UserError(f"prefect {' '.join(arguments)} fails: {' '.join((done.stdout + done.stderr).split())[-1000:]}")
