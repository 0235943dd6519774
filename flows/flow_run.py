"""The run as the Prefect server knows it: its name, its tags, its progress, and whether it is still needed."""

import contextlib
import logging
import os
import re
import shutil
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.events import emit_event

from tasks.store.root import LITTLE_DISK, store_root

GENERATED_NAME = re.compile("[a-z]+-[a-z]+")
"""What server and form call a run that nobody named, such as brave-otter."""
PROGRESS = re.compile(r"(?:(step) |(base|champion|tuned): )([\d,]+)/([\d,]+) ?")
"""The lines of the training and evaluation processes that say how far they are."""


MOST_CRASHES = 2


def by_a_worker() -> bool:
    """Whether a worker has started this process, and no command."""
    return "PREFECT__FLOW_RUN_ID" in os.environ


def crashed_too_often() -> str:
    """Why a run that deployments/automations.yaml started again ends for good; empty for any other."""
    context = FlowRunContext.get()
    if not (by_a_worker() and context and context.flow_run):
        return ""
    with get_client(sync_client=True) as client:
        states = client.read_flow_run_states(context.flow_run.id)
    crashes = sum(state.type == StateType.CRASHED for state in states)
    said = f"The process of this run was lost {crashes} times, so it is not started again. A new run goes on from its "
    return f"{said}last checkpoint." if crashes >= MOST_CRASHES else ""


def tell(event: str, name: str, said: str) -> None:
    """Emit an event that automations can act on.

    Args:
        event: such as `published`; it becomes `qlora-flow.published`.
        name: of the adapter.
        said: what has happened, in a sentence.
    """
    if by_a_worker():
        resource = {"prefect.resource.id": f"qlora-flow.adapter.{name}", "prefect.resource.name": name}
        emit_event(f"qlora-flow.{event}", resource=resource, payload={"name": name, "said": said})


def tell_little_disk(name: str) -> None:
    free = shutil.disk_usage(store_root()).free
    if free < LITTLE_DISK:
        tell("disk.low", name, f"{store_root()} has {free / 2**30:.1f} GiB free.")


def describe(name: str, tags: list[str]) -> None:
    """Name the run, unless somebody has, and add tags."""
    context = FlowRunContext.get()
    if context and (run := context.flow_run):
        with get_client(sync_client=True) as client:
            own = GENERATED_NAME.fullmatch(run.name)
            client.update_flow_run(run.id, name=name if own else run.name, tags=sorted({*run.tags, *tags}))


def due_again() -> bool:
    """Whether the deployment's same run is due once more: of those missed without a worker, only the last one runs."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if not (run and run.deployment_id):
        return False
    due = {
        "deployment_id": {"any_": [run.deployment_id]},
        "state": {"type": {"any_": ["SCHEDULED"]}},
        "next_scheduled_start_time": {"before_": datetime.now(UTC)},
    }
    with get_client(sync_client=True) as client:
        others = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(due))
    return any(
        (other.parameters, other.job_variables) == (run.parameters, run.job_variables)
        for other in others
        if other.id != run.id
    )


class Progress(logging.Handler):
    """Turns a stage's lines `step 5/100 · …` into a progress artifact of the run that moves."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._bars: dict[tuple[str, str], UUID] = {}

    def emit(self, record: logging.LogRecord) -> None:
        if (said := PROGRESS.match(record.getMessage())) and (run := getattr(record, "flow_run_id", None)):
            with (
                contextlib.suppress(Exception),
                get_client(sync_client=True) as client,
            ):  # a picture is worth no failure
                self._show(client, run, said)

    def _show(self, client: SyncPrefectClient, run: str, said: re.Match[str]) -> None:
        what = {"step": "train"}.get(said[1], f"evaluate-{said[2]}")
        percent = 100 * int(said[3].replace(",", "")) / int(said[4].replace(",", ""))
        if bar := self._bars.get((run, what)):
            client.update_artifact(bar, ArtifactUpdate(data=percent))
        else:
            bar_of: Any = ArtifactCreate(
                type="progress", key=f"progress-{what}", description=what, data=percent, flow_run_id=UUID(run)
            )
            self._bars[run, what] = client.create_artifact(bar_of).id
