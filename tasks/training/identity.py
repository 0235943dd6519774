"""What decides an adapter."""

from tasks.config import TrainingConfig
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef


def identity(tokens: ArtifactRef, model: BaseModelRef, config: TrainingConfig) -> Identity:
    return Identity(
        stage="train",
        inputs={"tokens": tokens.digest, "model": model.digest, "source": model.source},
        config=config.model_dump(),
        code=("tasks.training",),
        libraries=("torch", "transformers", "peft", "trl", "bitsandbytes"),
    )
