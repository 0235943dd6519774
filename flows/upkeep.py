"""Flows that deployments run beside `retrain`: every configuration of a folder, and cleaning the store."""

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import Field

from flows.checks import check
from flows.config_file import load
from flows.retrain import retrain
from tasks.errors import UserError
from tasks.process.failures import full_disk
from tasks.text import code, visible


@flow(name="retrain-all", flow_run_name="{folder}", persist_result=False)
def retrain_all(folder: str) -> Any:
    """Retrain every configuration of a folder, one after another. Results that several share are computed once.

    Args:
        folder: Folder of YAML files, each one a configuration; a relative path begins at the folder that was deployed.
    Returns:
        a state whose message counts the outcomes, and whose data is a sentence for each file that did not fail.
    """
    log = get_run_logger()
    files = sorted(file for ending in ("yaml", "yml") for file in Path(folder).expanduser().glob(f"*.{ending}"))
    if not files:
        return Failed(message=f"folder: {Path(folder).absolute()} holds no .yaml file.")
    said: dict[str, str] = {}
    failed: dict[str, str] = {}
    for file in files:
        try:
            groups: dict[str, Any] = dict(load(file, {}))
            check(groups)
            said[file.name] = retrain(**groups)["said"]
        except Exception as error:  # the other configurations run anyway
            failed[file.name] = visible(full_disk(error) or error)
            log.error(f"{file.name} failed: {failed[file.name]}")
    lines = [f"| {code(name)} | {code(what)} |" for name, what in sorted({**said, **failed}.items())]
    create_markdown_artifact("\n".join(["| configuration | outcome |", "|---|---|", *lines]), key="retrain-all")
    for name, what in said.items():
        log.info(f"{name}: {what}")
    if failed:
        return Failed(
            message=f"{len(failed)} of {len(files)} failed: " + "; ".join(f"{n}: {w}" for n, w in failed.items())
        )
    return Completed(message=f"{len(files)} configurations: {'; '.join(dict.fromkeys(said.values()))}", data=said)


@flow(name="clean", persist_result=False)
def clean(keep_last: Annotated[int, Field(ge=1)] = 3) -> Any:
    """Remove results that are not among the latest and from which no published version was made.

    Args:
        keep_last: Results to keep of each stage.
    """
    from flows.clean import clean

    try:
        removed, freed = clean(keep_last)
    except UserError as error:
        return Failed(message=str(error), data=error)
    return Completed(message=f"{len(removed)} results removed, {freed / 2**20:,.1f} MiB freed", data=removed)
