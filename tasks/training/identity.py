"""What decides an adapter."""

from typing import Any

from tasks.config import TrainingConfig
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef

_MADE_BY: dict[str, Any] = {
    "code": ("tasks.training", "tasks.model", "tasks.tokenization.fill"),
    "libraries": ("torch", "transformers", "accelerate", "peft", "trl", "bitsandbytes"),
}


def identity(tokens: ArtifactRef, model: BaseModelRef, config: TrainingConfig) -> Identity:
    return Identity(
        stage="train",
        inputs={"tokens": tokens.digest, "model": model.digest, "source": model.source},
        config=config.model_dump(),
        **_MADE_BY,
    )


def version() -> str:
    """Digest of the code and libraries alone; equal on machines that can train together."""
    return Identity(stage="train", **_MADE_BY).key
