"""Training and evaluation by a worker on another machine, while the run waits here.

Inputs and results travel through the remote store, where the run then finds the result like any other. The worker
computes only the result whose key the run names.
"""

import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.states import Cancelling, Completed
from pydantic import Field

from flows.clean import origins
from flows.flow_run import unattended
from flows.stages import BY_NAME, limited
from tasks.config import EvaluationConfig, ExecutionConfig, ModelConfig, TrainingConfig
from tasks.download.models import fetch_model
from tasks.errors import UserError
from tasks.evaluation.task import evaluate
from tasks.process.failures import is_transient
from tasks.store.artifact import ArtifactRef, check_folder, fetched, in_use, locked, reference
from tasks.store.caching import VerifiedJSONSerializer
from tasks.store.manifest import DamagedArtifact, read_manifest
from tasks.store.model import BaseModelRef
from tasks.store.origins import results
from tasks.store.remote import Remote
from tasks.store.root import store_root
from tasks.training.start import WEIGHTS, Start
from tasks.training.task import train

POLL_SECONDS = 5.0
CRASH_SECONDS = 120.0  # in which deployments/automations.yaml starts a crashed run again
Stage = Literal["train", "evaluate"]
Key = Annotated[str, Field(pattern="^[a-z]+-[0-9a-f]{32}$")]


def compute_elsewhere(
    stage: Stage,
    made: Mapping[str, ArtifactRef],
    base: BaseModelRef,
    groups: Mapping[str, Any],
    earlier: ArtifactRef | Start | None = None,
) -> None:
    """Have the deployment of `execution.gpu_deployment` compute a stage, unless its result exists.

    Args:
        made: results of the stages before it.
        groups: the flow's parameters, with the base model at a commit.
        earlier: the version that training begins from, or the champion for evaluation.
    Raises:
        UserError: there is no such deployment, its run failed, or its result did not arrive.
    """
    if not (name := groups["execution"].gpu_deployment):
        return
    remote: Any = Remote.configured()  # flows/checks.py has seen it
    key = BY_NAME[stage].identity(made, base, groups, earlier).key
    if (store_root() / "artifacts" / key).exists() or remote.manifest(key):
        return
    needed = [*made.values()]
    if isinstance(earlier, Start):
        needed.append(reference(Path(earlier.folder), read_manifest(Path(earlier.folder))))
    elif earlier:  # evaluation leaves out rows that it was trained on
        needed += [earlier, *(reference(f, read_manifest(f)) for f in origins([earlier.manifest], results()))]
    for each in needed:
        remote.push(each.manifest, each.path, replace=True)
    parameters = {"stage": stage, "key": key, "made": [each.manifest.key for each in needed]}
    parameters |= {group: groups[group].model_dump() for group in ("model", "training", "evaluation", "execution")}
    try:
        run: Any = run_deployment(name, parameters=parameters, timeout=0, flow_run_name=f"{stage} for {key}")
    except ObjectNotFound as error:
        raise UserError(f"execution.gpu_deployment: the Prefect server has no deployment {name}.") from error
    get_run_logger().info(f"{stage} waits for {name}")
    if not (state := _end(run)).is_completed():
        raise UserError(f"{stage} on {name} ended as {state.name}: {state.message}")
    if not remote.manifest(key):
        raise UserError(f"{stage} on {name} is done, but {remote.url} lacks the result; its worker needs the same one.")


def _end(run: FlowRun) -> Any:
    """The last state of a run; it is cancelled if the run here ends first."""

    def over(state: Any) -> bool:
        restarted = state.is_crashed() and datetime.now(UTC) - state.timestamp < timedelta(seconds=CRASH_SECONDS)
        return state.is_final() and not restarted

    with get_client(sync_client=True) as client:
        try:
            while not over(run.state):
                time.sleep(POLL_SECONDS)
                try:
                    run = client.read_flow_run(run.id)
                except Exception as error:
                    if not is_transient(error):
                        raise
        except BaseException:
            client.set_flow_run_state(run.id, Cancelling(), force=True)
            raise
    return run.state


@flow(name="gpu-stage", persist_result=False, validate_parameters=False, result_serializer=VerifiedJSONSerializer())
@unattended
def gpu_stage(
    stage: Stage,
    key: Key,
    made: list[Key],
    model: ModelConfig,
    training: TrainingConfig,
    evaluation: EvaluationConfig,
    execution: ExecutionConfig,
) -> Any:
    """Train or evaluate for a run on another machine. Both machines have the same QLORA_FLOW_REMOTE.

    Args:
        stage: Which of the two.
        key: Key of the result for which the run waits.
        made: Keys of the run's results, then of the version it begins from or is compared with, and its origins.
        model: The base model, at a commit.
        training: Quantization, LoRA and optimization.
        evaluation: How base and tuned model are compared.
        execution: Retries and timeouts.
    """
    with in_use():
        there: dict[str, ArtifactRef] = {}
        for each in made:
            there.setdefault(each.partition("-")[0], _bring(each))
        base, row = fetch_model(model, get_run_logger().info), BY_NAME[stage]
        config: Any = training if stage == "train" else evaluation
        version = there.get("publish")
        begun = version and Start(folder=str(version.path), digest=version.manifest.files[WEIGHTS].sha256)
        earlier = begun if stage == "train" else version
        if row.identity(there, base, {row.group: config}, earlier).key != key:
            raise UserError(
                "This machine would compute another result than the run waits for: the base model, or the version of "
                "qlora-flow or of a library, differs. Install the same on both."
            )
        task: Any = train if stage == "train" else evaluate
        limited(task, execution)(*(there[each] for each in row.inputs.values()), base, config, execution, earlier)
    return Completed(message=f"{key} is in the remote store")


def _bring(key: str) -> ArtifactRef:
    """A result that the other machine put into the remote store."""
    log, remote, folder = get_run_logger().info, Remote.configured(), store_root() / "artifacts" / key
    if remote:
        with locked(key):
            wanted = remote.manifest(key, log)
            with contextlib.suppress(DamagedArtifact):
                if wanted and check_folder(folder).digest == wanted.digest:
                    return reference(folder, wanted)
            if manifest := fetched(remote, folder, key, log):
                return reference(folder, manifest)
    where = remote.url if remote else "QLORA_FLOW_REMOTE, which is not set"
    raise UserError(f"{key} is not in {where}; both machines need the same one.")
