"""The run on the Prefect server: its name, tags, events and progress, and whether it is still needed."""

import contextlib
import functools
import inspect
import logging
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ParamSpec, get_type_hints
from uuid import UUID

import coolname.data
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.states import Completed, Failed
from pydantic import TypeAdapter, ValidationError

from flows.config_file import sentence_of
from tasks.config import SECTIONS
from tasks.errors import UserError
from tasks.process.failures import disk_trouble
from tasks.store.root import LITTLE_DISK, store_root

P = ParamSpec("P")

NAMED_BY_THE_FORM = re.compile(
    "(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|"
    r"psi|omega)\d*(-+[a-z]+)*|"
    "(Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical|Ergonomic|"
    "Handcrafted|Tasty|Handmade|Incredible)-[A-Z].*"
)
"""What the UI, old and new, proposes as the name of a run: lambda2-kaxuinic, Ergonomic-Marmot."""
PROGRESS = re.compile(
    r"(?:(step) |(download|format|tokenize|base|champion|tuned|clean-room): )([\d,]+)(?:/([\d,]+))? ?"
)
"""Log lines of stages that tell their progress."""
MOST_CRASHES = 2
EACH_COUNTS = ("rollback", "gpu_stage")
"""Flows that are never skipped: two rollbacks go back two versions, and a run waits for each gpu-stage."""


def unattended(function: Callable[P, Any]) -> Callable[P, Any]:
    """A flow that needs nobody to watch it.

    A run that is due again is skipped, and one that has crashed twice fails. After a mistake of the user or trouble
    with a disk, the failed state has a sentence as message, without a stack. Parameters are validated here, because
    Prefect's message about a wrong one is no sentence; its flow has `validate_parameters=False`.
    """

    flow: Callable[..., Any] = function

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> Any:
        if function.__name__ not in EACH_COUNTS and _due_again():
            why = "Skipped: this run is due again, and of runs that were missed only the last one catches up."
            return Completed(message=why, data={"outcome": "skipped", "said": why})
        if why := _crashed_too_often():
            return Failed(message=why)
        try:
            return flow(**_validated(flow, *arguments, **named))
        except Exception as error:
            if not (said := str(error) if isinstance(error, UserError) else disk_trouble(error)):
                raise
            return Failed(message=said, data=error)

    return run


def _validated(function: Callable[..., Any], *arguments: Any, **named: Any) -> dict[str, Any]:
    """The parameters as the types of the function; raises UserError with a sentence for each mistake."""
    types, mistakes, validated = get_type_hints(function, include_extras=True), [], {}
    for name, value in inspect.signature(function).bind(*arguments, **named).arguments.items():
        try:
            validated[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            for each in error.errors():
                known = sentence_of(name, SECTIONS[name], each) if name in SECTIONS else ""
                mistakes.append(known or f"{name}: {value!r} is wrong: {each['msg'][0].lower()}{each['msg'][1:]}.")
    if mistakes:
        raise UserError(*mistakes)
    return validated


def by_a_worker() -> bool:
    """Whether a Prefect worker started this process."""
    return "PREFECT__FLOW_RUN_ID" in os.environ


def _run() -> FlowRun | None:
    context = FlowRunContext.get()
    return context.flow_run if context else None


def _crashed_too_often() -> str:
    """Why this run is not restarted after crashes by deployments/automations.yaml any more; empty if it is."""
    if not (by_a_worker() and (run := _run())):
        return ""
    with get_client(sync_client=True) as client:
        crashes = sum(state.type == StateType.CRASHED for state in client.read_flow_run_states(run.id))
    if crashes < MOST_CRASHES:
        return ""
    return (
        f"The process of this run was lost {crashes} times, so it is not started again. A new run continues from the "
        "last checkpoint."
    )


def tell(event: str, name: str, said: str) -> None:
    """Emit an event that automations can act on.

    Args:
        event: such as `published`; it becomes `qlora-flow.published`.
        name: of the adapter.
        said: a sentence about what has happened.
    """
    if by_a_worker():
        resource = {"prefect.resource.id": f"qlora-flow.adapter.{name}", "prefect.resource.name": name}
        emit_event(f"qlora-flow.{event}", resource=resource, payload={"name": name, "said": said})


def tell_little_disk(name: str) -> None:
    free = shutil.disk_usage(store_root()).free
    if free < LITTLE_DISK:
        tell("disk.low", name, f"{store_root()} has {free / 2**30:.1f} GiB free.")


def describe(name: str, tags: list[str]) -> None:
    """Name the run, unless a person has named it, and add tags."""
    if run := _run():
        with get_client(sync_client=True) as client:
            own = run.name if typed(run.name) else name
            client.update_flow_run(run.id, name=own, tags=sorted({*run.tags, *tags}))


def typed(name: str) -> bool:
    """Whether a person has typed the name of a run; server and UI make up brave-otter and lambda2-kaxuinic."""
    lists: dict[str, Any] = coolname.data.config
    words = {word for part in lists.values() for word in part.get("words", ())}
    return not (words.issuperset(name.split("-")) or NAMED_BY_THE_FORM.fullmatch(name))


def _due_again() -> bool:
    """Whether an equal run of the deployment is due: of several that no worker started in time, only the last runs."""
    run = _run()
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
    """Shows a stage's lines `step 5/100 · …` as a progress artifact of the run."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._bars: dict[tuple[str, str], UUID] = {}

    def emit(self, record: logging.LogRecord) -> None:
        said, run = PROGRESS.match(record.getMessage()), getattr(record, "flow_run_id", None)
        if not (said and said[4] and run):
            return
        what = "train" if said[1] else f"evaluate-{said[2]}" if said[2] in ("base", "champion", "tuned") else said[2]
        percent = 100 * int(said[3].replace(",", "")) / int(said[4].replace(",", ""))
        bar: dict[str, Any] = {"type": "progress", "key": f"progress-{what}", "description": what, "flow_run_id": run}
        # a progress bar is worth no failure
        with contextlib.suppress(Exception), get_client(sync_client=True) as client:
            if id := self._bars.get((run, what)):
                client.update_artifact(id, ArtifactUpdate(data=percent))
            else:
                self._bars[run, what] = client.create_artifact(ArtifactCreate(data=percent, **bar)).id
