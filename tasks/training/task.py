"""Stage 4: LoRA on a quantized base, in a child process of its own."""

import json
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from tasks.config import ExecutionConfig, TrainingConfig
from tasks.errors import UserError
from tasks.process.child import run_child
from tasks.store.artifact import ArtifactRef, produce, work_folder
from tasks.store.caching import cached
from tasks.store.manifest import latest
from tasks.store.model import BaseModelRef
from tasks.store.root import store_root
from tasks.training import worker
from tasks.training.distributed import launch
from tasks.training.distributed.nodes import gpus, nodes
from tasks.training.identity import identity

_SLOWER = 0.85
_FEWEST_STEPS = 10  # fewer say nothing about speed


@task(name="train", **cached(identity))
def train(tokens: ArtifactRef, model: BaseModelRef, config: TrainingConfig, execution: ExecutionConfig) -> ArtifactRef:
    """tokens.parquet → adapter/ (safetensors) and training_log.parquet."""
    from tasks.tokenization.schema import TOKENS

    log = get_run_logger().info
    decided_by = identity(tokens, model, config)

    def write(folder: Path) -> dict[str, Any]:
        checkpoints = work_folder(decided_by)
        checkpoints.mkdir(parents=True, exist_ok=True)
        job = {
            "tokens": str(tokens.path / TOKENS),
            "model": model.folder,
            "source": model.source,
            "config": config.model_dump(),
            "output": str(folder),
            "checkpoints": str(checkpoints),
            "checkpoint_steps": execution.checkpoint_steps,
        }
        processes = config.processes or gpus() or 1
        if 0 < gpus() < processes:
            raise UserError(f"training.processes {processes} is more than this machine has GPUs: {gpus()}")
        several = processes > 1 or nodes().count > 1
        job |= {"processes": processes} if several else {}
        run_child((launch if several else worker).__name__, job, log, execution.hang_minutes)
        totals = json.loads((folder / "training.json").read_text()) | {"model": model.folder}
        last = latest((store_root() / "artifacts").glob("train-*"))
        if sentence := slower(totals, last.info if last else {}):
            log(sentence)
        return totals

    return produce(decided_by, write, log, (tokens, model))


def slower(totals: dict[str, Any], before: dict[str, Any]) -> str:
    """A sentence when a run was much slower than the last one, and that one is comparable; else nothing.

    Args:
        totals: of this run, as in training.json.
        before: the same of the training run before it; empty without one.
    """
    if any(before.get(name) != totals[name] for name in ("device", "model", "speed")):
        return ""
    if min(before["steps"], totals["steps"]) < _FEWEST_STEPS:
        return ""
    share = totals["tokens_per_second"] / before["tokens_per_second"]
    if share >= _SLOWER:
        return ""
    return (
        f"slower than the last run on this {totals['device']}: {totals['tokens_per_second']:,.0f} tokens/s instead of "
        f"{before['tokens_per_second']:,.0f} ({share - 1:.0%})"
    )
