"""What decides token ids."""

from tasks.config import TokenizationConfig
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef


def identity(prompts: ArtifactRef, model: BaseModelRef, config: TokenizationConfig) -> Identity:
    return Identity(
        stage="tokenize",
        inputs={"prompts": prompts.digest, "tokenizer": model.tokenizer_digest},
        config=config.model_dump(exclude={"max_length"})
        | {"limit": min(config.max_length, model.max_length), "special_tokens": prompts.info["special_tokens"]},
        code=("tasks.tokenization", "tasks.process.pool", "tasks.text", "tasks.store.ledger"),
        libraries=("tokenizers", "pyarrow"),
    )
