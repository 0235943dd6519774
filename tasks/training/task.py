"""Stage 4: LoRA on a quantized base, in a child process of its own."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.config import ExecutionConfig, TrainingConfig
from tasks.errors import UserError
from tasks.process.child import run_child
from tasks.store.artifact import ArtifactRef, produce, work_folder
from tasks.store.caching import cached
from tasks.store.model import BaseModelRef
from tasks.training.checkpoints import mirrored
from tasks.training.distributed.nodes import gpus, nodes
from tasks.training.facts import TrainingFacts
from tasks.training.identity import identity
from tasks.training.start import Start, adapter_folder

fetch_start = task(name="fetch adapter", cache_policy=NO_CACHE, persist_result=False)(adapter_folder)


@task(name="train", **cached(identity))
def train(
    tokens: ArtifactRef,
    model: BaseModelRef,
    config: TrainingConfig,
    execution: ExecutionConfig,
    start: Start | None = None,
) -> ArtifactRef:
    """tokens.parquet → adapter/ (safetensors) and training_log.parquet. `start`: None to begin from nothing."""
    from tasks.tokenization.schema import TOKENS
    from tasks.training import worker
    from tasks.training.distributed import launch
    from tasks.training.schema import TrainingJob

    log, warn = get_run_logger().info, get_run_logger().warning
    decided_by = identity(tokens, model, config, start)

    def write(folder: Path) -> TrainingFacts:
        checkpoints = work_folder(decided_by)
        checkpoints.mkdir(parents=True, exist_ok=True)
        processes = config.processes or gpus() or 1
        if 0 < gpus() < processes:
            raise UserError(f"training.processes {processes} is more than this machine has GPUs: {gpus()}")
        job = TrainingJob(
            tokens=tokens.path / TOKENS,
            model=Path(model.folder),
            source=model.source,
            start=start.folder if start else "",
            config=config,
            output=folder,
            checkpoints=checkpoints,
            checkpoint_steps=execution.checkpoint_steps,
            processes=processes,
        )
        program = launch if processes > 1 or nodes().count > 1 else worker
        with mirrored(checkpoints, log, warn):
            run_child(program.__name__, job, log, execution.hang_minutes)
        return TrainingFacts.model_validate_json((folder / "training.json").read_bytes())

    return produce(decided_by, write, log, (tokens, model, *([start] if start else [])))
