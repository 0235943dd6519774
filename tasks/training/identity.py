"""What decides an adapter."""

from pathlib import Path

from tasks.config import TrainingConfig
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity, file_digest, installed
from tasks.store.model import BaseModelRef
from tasks.training.start import Start

VERSION = 2
"""Raised when the same inputs can give another adapter (docs/caching.md)."""
_LIBRARIES = ("torch", "transformers", "accelerate", "peft", "trl", "bitsandbytes")


def identity(tokens: ArtifactRef, model: BaseModelRef, config: TrainingConfig, start: Start | None = None) -> Identity:
    """Args: start: the adapter whose weights training begins from; its content counts, not where it lies."""
    inputs = {"tokens": tokens.digest, "model": model.digest, "source": model.source}
    return Identity(
        stage="train",
        inputs=inputs | ({"start": start.digest} if start else {}),
        config=config.model_dump(exclude={"start_from"}),
        version=VERSION,
        libraries=installed(*_LIBRARIES),
    )


def version() -> str:
    """Digest of all source files and the libraries; equal on machines that can train together."""
    tasks = Path(__file__).parents[1]
    sources = {file.relative_to(tasks).as_posix(): file_digest(file) for file in tasks.rglob("*.py")}
    return Identity(stage="train", inputs=sources, version=VERSION, libraries=installed(*_LIBRARIES)).key
