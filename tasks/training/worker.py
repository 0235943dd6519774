"""The training child: tokens in, adapter out.

    python -m tasks.training.worker JOB.json PARENT_PID      (several processes: launch.py)

The job names `tokens` (a Parquet file), `model` (folder of the base), `source` (what the adapter names as its base),
`config` (a dumped TrainingConfig), `output` (an existing empty folder), `checkpoints` (a folder; what an earlier
attempt of the same job left there is continued) and `checkpoint_steps` (steps between two of them, 0: none by steps).
Written to the output: `adapter/`, `training_log.parquet`, `training.json`, and `ledger.parquet` when rows were held
back for validation.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.process.child import STOPPED_EXIT, main
from tasks.process.quiet import silence


def alone(job: dict[str, Any]) -> None:
    """Run one job in this process alone, on one GPU at most; see the module's text.

    transformers divides a lone process's batches among all GPUs it sees (nn.DataParallel), and takes the variables of
    a launcher above the flow (a cluster's operator, say) for its own.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        os.environ.pop(name, None)
    train(job)


def train(job: dict[str, Any]) -> None:
    """Run one job, alone or as one of several processes; see the module's text.

    Raises:
        UserError: configuration or data cannot be trained.
        TrainingFailed: a step taught nothing.
        PeerLost, ShortOfMemory: one of several processes is gone, or out of memory.
    """
    silence()
    import torch

    from tasks.config import TrainingConfig
    from tasks.model import base
    from tasks.model.device import device
    from tasks.training import log
    from tasks.training.data import read_divided, read_rows
    from tasks.training.distributed.collectives import Peers
    from tasks.training.trainer import Interrupted, PackedTrainer

    config = TrainingConfig.model_validate(job["config"])
    held_back, ids = None, list[str]()
    if config.validation_share:
        rows, held_back, ids = read_divided(Path(job["tokens"]), config.validation_share)
    else:
        rows = read_rows(Path(job["tokens"]))
    say = print if int(os.environ.get("RANK", 0)) == 0 else _nothing
    peers, folder = Peers(), Path(job["model"])
    sharded = base.to_be_sharded(folder, config, rows, device(), peers)
    say(f"loading the base model ({config.quantization}, {config.compute_dtype})")
    if sharded:
        say(f"its frozen weights are divided among {peers.count} processes")
    try:
        model = base.load(folder, config, device(), sharded)
    except torch.OutOfMemoryError:
        raise UserError(
            f"the base model does not fit into this GPU's memory (training.quantization {config.quantization}): "
            "quantize it to 4bit, or divide it among several GPUs with training.processes"
        ) from None
    trainer = PackedTrainer(model, rows, config, Path(job["checkpoints"]), say, held_back, peers)
    trainer.checkpoint_steps = job["checkpoint_steps"]
    signal.signal(signal.SIGTERM, trainer.request_stop)
    say(f"training on {log.device_name()}: {len(rows):,} rows, {trainer.args.max_steps:,} steps")
    if trainer.validation:
        say(f"{len(ids):,} rows are held back for validation, every {trainer.validation.every:,} steps")
    try:
        trainer.run()
    except Interrupted:
        say(f"stopped on request after step {trainer.state.global_step}; the next attempt continues from there")
        sys.exit(STOPPED_EXIT)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if trainer.is_world_process_zero():
        write(trainer, Path(job["output"]), job["source"], ids)


def _nothing(line: str) -> None:
    """What the other processes have to say is the first one's to say."""


def write(trainer: Any, output: Path, source: str, held_back: list[str]) -> None:
    """What the finished run leaves; `held_back`: ids of the rows it did not train on."""
    from tasks.model import dequantization, flops
    from tasks.store.ledger import Ledger
    from tasks.training import log
    from tasks.training.data import HELD_BACK

    trainer.model.save_pretrained(output / "adapter", safe_serialization=True)
    (output / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    settings = output / "adapter" / "adapter_config.json"
    adapter = json.loads(settings.read_text())
    adapter["target_modules"] = sorted(adapter["target_modules"])  # a set: its order changes from run to run
    adapter["base_model_name_or_path"] = source  # not a folder of this machine: equal adapters are equal files
    settings.write_text(json.dumps(adapter, indent=2, sort_keys=True) + "\n")
    trainer.step_log.save(output / "training_log.parquet")
    totals = trainer.step_log.totals()
    speed = float(totals["tokens_per_second"])
    passes = speed * trainer.micro_batches / max(trainer.step_log.tokens_here(), 1)  # a second
    totals |= {
        "device": log.device_name(),
        "padding_share": 0.0,  # rows are packed whole and nothing is padded
        "out_of_memory_halvings": trainer.halvings,
        "speed": trainer.way.speed,
        "micro_batch_tokens": trainer.micro_batch_tokens,
        "model_flop_utilisation": flops.utilisation(trainer.adapted, trainer.args.device, speed / trainer.peers.count),
        "dequantization_share": dequantization.share(trainer.adapted, trainer.way.speed, passes),
        **(trainer.validation.totals() if trainer.validation else {}),
    }
    if held_back:
        ledger = Ledger("train", output)
        for id in held_back:
            ledger.left_out(id, "train", HELD_BACK, "")
        ledger.write()
    log.write_totals(output / "training.json", totals)


if __name__ == "__main__":
    main(alone)
