"""The training process: tokens in, adapter out.

    python -m tasks.training.worker JOB.json PARENT_PID      (several processes: distributed/launch.py)

The job is a `TrainingJob`. Written to its output: `adapter/`, `training_log.parquet`, `training.json` with the
`TrainingFacts`, and `ledger.parquet` where rows are used for validation.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks.errors import UserError
from tasks.process.child import STOPPED_EXIT, main
from tasks.process.quiet import silence
from tasks.training.facts import TrainingFacts
from tasks.training.schema import LOG, TrainingJob

if TYPE_CHECKING:
    from tasks.training.trl_adapter import PackedTrainer


def train_in_one_process(job: TrainingJob) -> None:
    """Run one job in this process, on at most one GPU."""
    _use_one_gpu()
    train(job)


def prepare() -> None:
    """Import what training imports."""
    _use_one_gpu()
    silence()
    import tasks.training.trl_adapter  # noqa: F401


def _use_one_gpu() -> None:
    """To be called before torch is imported.

    Without these settings transformers would divide the batches of a single process among all visible GPUs
    (nn.DataParallel), and obey the variables of a launcher that started the flow, such as a cluster's operator.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)


def train(job: TrainingJob) -> None:
    """Run one job in this process, which may be one of several.

    Raises:
        UserError: configuration or data cannot be trained.
        TrainingFailed: loss or gradient norm of a step is not finite, or the norm is zero.
        PeerLost, ShardedOutOfMemory: another process is gone, or a process of a sharded run is out of memory.
    """
    silence()
    import torch

    from tasks.model import base
    from tasks.model.collectives import Collectives
    from tasks.model.device import device, device_name
    from tasks.training.compute_plan import should_shard
    from tasks.training.data import read_rows
    from tasks.training.step import Interrupted
    from tasks.training.trl_adapter import PackedTrainer

    config, collectives = job.config, Collectives()
    rows, validation_rows, ids = read_rows(job.tokens, config.validation_share)
    log: Callable[[str], None] = (lambda line: None) if collectives.rank else print  # only the first process logs
    sharded = should_shard(job.model, config, rows, device(), collectives)
    log(f"loading the base model ({config.quantization}, {config.compute_dtype})")
    if job.start:
        log(f"training begins from the adapter in {job.start}")
    if sharded:
        log(f"its frozen weights are divided among {collectives.count} processes")
    try:
        model = base.load(job.model, config, device(), sharded, job.start)
    except torch.OutOfMemoryError:
        raise UserError(
            f"the base model does not fit into this GPU's memory (training.quantization {config.quantization}): "
            "quantize it to 4bit, or divide it among several GPUs with training.processes"
        ) from None
    trainer = PackedTrainer(model, rows, config, job.checkpoints, log, validation_rows, collectives)
    trainer.step.schedule.steps = job.checkpoint_steps
    signal.signal(signal.SIGTERM, trainer.step.request_stop)
    log(f"training on {device_name()}: {len(rows):,} rows, {trainer.args.max_steps:,} steps")
    if trainer.step.validation:
        log(f"{len(ids):,} rows are for validation, every {trainer.step.validation.every:,} steps")
    try:
        trainer.run()
    except Interrupted:
        log(f"stopped on request after step {trainer.state.global_step}; the next attempt continues from there")
        sys.exit(STOPPED_EXIT)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if trainer.is_world_process_zero():
        write(trainer, job, ids)


def write(trainer: "PackedTrainer", job: TrainingJob, validation_ids: list[str]) -> None:
    """Write the results of a finished run to the job's output folder."""
    from tasks.model.device import device_name
    from tasks.store.ledger import Ledger
    from tasks.training.data import HELD_BACK

    step, output = trainer.step, job.output
    step.model.save_pretrained(str(output / "adapter"), safe_serialization=True)
    (output / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    settings = output / "adapter" / "adapter_config.json"
    adapter = json.loads(settings.read_text())
    adapter["target_modules"] = sorted(adapter["target_modules"])  # PEFT's set has no fixed order
    adapter["base_model_name_or_path"] = job.source  # not this machine's folder, so that equal adapters are equal files
    settings.write_text(json.dumps(adapter, indent=2, sort_keys=True) + "\n")
    step.metrics.save(output / LOG)
    facts = TrainingFacts(
        **step.metrics.totals(),
        model=str(job.model),
        device=device_name(),
        out_of_memory_halvings=step.halvings,
        speed=trainer.plan.speed,
        micro_batch_tokens=step.micro_batch_tokens,
        **(step.validation.totals() if step.validation else {}),
    )
    if validation_ids:
        ledger = Ledger("train", output)
        for id in validation_ids:
            ledger.add("left out", id, "train", HELD_BACK, "")
        ledger.write()
    (output / "training.json").write_text(facts.model_dump_json(indent=1, exclude_none=True) + "\n")


if __name__ == "__main__":
    main(train_in_one_process, TrainingJob, prepare)
