"""What decides prompts."""

from tasks.config import FormattingConfig
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity, installed
from tasks.store.model import BaseModelRef

VERSION = 6
"""Raised when the same inputs can give another result (docs/caching.md)."""
TEMPLATE, CHAT = {"prompt", "completion", "ending", "input_column"}, {"messages_column", "answer_column", "date"}
UNREAD = {"template": {"text_column", *CHAT}, "chat": {"text_column", *TEMPLATE}, "text": {*TEMPLATE, *CHAT}}


def identity(rows: ArtifactRef, model: BaseModelRef, config: FormattingConfig) -> Identity:
    """Only a chat template makes the prompts depend on the model."""
    chat = config.style == "chat"
    unread = UNREAD[config.style]
    return Identity(
        stage="format",
        inputs={"rows": rows.digest} | ({"tokenizer": model.tokenizer_digest} if chat else {}),
        config=config.model_dump(exclude=unread),
        version=VERSION,
        libraries=installed("jinja2", "pyarrow", "rensa", *(["transformers"] if chat else [])),
    )
