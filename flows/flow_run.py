"""The run as the Prefect server knows it: its name, its tags, its progress, and whether it is still needed."""

import contextlib
import logging
import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.context import FlowRunContext

GENERATED_NAME = re.compile("[a-z]+-[a-z]+")
"""What server and form call a run that nobody named, such as brave-otter."""
PROGRESS = re.compile(r"(?:(step) |(base|tuned): )([\d,]+)/([\d,]+) ?")
"""The lines of the training and evaluation processes that say how far they are."""


def of_a_deployment() -> bool:
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


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
