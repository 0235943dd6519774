"""What decides predictions and scores."""

from tasks.config import EvaluationConfig
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef


def identity(
    adapter: ArtifactRef, tokens: ArtifactRef, prompts: ArtifactRef, model: BaseModelRef, config: EvaluationConfig
) -> Identity:
    return Identity(
        stage="evaluate",
        inputs={
            "adapter": adapter.part("adapter"),
            "tokens": tokens.digest,
            "prompts": prompts.digest,
            "model": model.digest,
        },
        config=config.model_dump() | {"ending": prompts.info["ending"]},
        code=(
            "tasks.evaluation.worker",
            "tasks.evaluation.generate",
            "tasks.evaluation.engine",
            "tasks.evaluation.cached",
            "tasks.evaluation.compare",
            "tasks.evaluation.metrics",
            "tasks.evaluation.schema",
            "tasks.model",
        ),
        libraries=("torch", "transformers", "peft", "bitsandbytes", "evaluate", "rouge_score", "nltk", "regex"),
    )
