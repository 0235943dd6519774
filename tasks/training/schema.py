"""What the training stage reads and writes."""

from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tasks.config import TrainingConfig

LOG = "training_log.parquet"
LOG_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("learnt_tokens", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("learning_rate", pa.float64(), nullable=False),
        pa.field("grad_norm", pa.float64(), nullable=False),
        pa.field("tokens_per_second", pa.float64(), nullable=False),
        pa.field("memory_bytes", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("validation_loss", pa.float64()),  # after this step, where it was measured
    ]
)


class TrainingJob(BaseModel):
    """What the training process is given.

    Args:
        tokens: the tokenization stage's Parquet file.
        model: folder of the base.
        source: what the adapter names as its base.
        start: folder of the adapter whose weights training begins from; empty: from nothing.
        output: an existing empty folder.
        checkpoints: a folder; an attempt continues from what an earlier attempt at the same job left there.
        checkpoint_steps: steps between two checkpoints; 0: by the clock only.
        processes: on this machine.
        rendezvous: where several processes meet, set by their launcher.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: Path
    model: Path
    source: str
    start: str = ""
    config: TrainingConfig
    output: Path
    checkpoints: Path
    checkpoint_steps: int = 0
    processes: int = 1
    rendezvous: str = ""
