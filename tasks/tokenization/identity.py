"""What decides token ids."""

from tasks.config import TokenizationConfig
from tasks.formatting.facts import PromptFacts
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity, installed
from tasks.store.model import BaseModelRef

VERSION = 3
"""Raised when the same inputs can give another result (docs/caching.md)."""


def identity(prompts: ArtifactRef, model: BaseModelRef, config: TokenizationConfig) -> Identity:
    return Identity(
        stage="tokenize",
        inputs={"prompts": prompts.digest, "tokenizer": model.tokenizer_digest},
        config=config.model_dump(exclude={"max_length"})
        | {
            "limit": min(config.max_length, model.max_length),
            "special_tokens": prompts.facts(PromptFacts).special_tokens,
        },
        version=VERSION,
        libraries=installed("tokenizers", "transformers", "pyarrow"),
    )
