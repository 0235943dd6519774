"""Identity of a published version, and the folder of its registry."""

from pathlib import Path

from tasks.config import FormattingConfig, PublishingConfig
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef
from tasks.store.root import at_home, store_root

VERSION = 5
"""Raised when the same inputs can give another result (docs/caching.md)."""


def identity(
    adapter: ArtifactRef, scores: ArtifactRef, prompts: ArtifactRef, model: BaseModelRef, config: PublishingConfig
) -> Identity:
    return Identity(
        stage="publish",
        inputs={"adapter": adapter.part("adapter"), "scores": scores.digest, "model": model.digest},
        config=config.model_dump()
        # the store's own registry has no path here, so that the store can be moved
        | {"registry": str(_registry(config)) if config.registry else ""}
        | {"source": model.source, "revision": model.revision}
        # the model card has the formatting
        | {f"formatting.{name}": value for name, value in prompts.manifest.fields(FormattingConfig)},
        version=VERSION,
    )


def registry_folder(config: PublishingConfig) -> Path:
    """The folder with the versions of this adapter."""
    return _registry(config) / config.name


def _registry(config: PublishingConfig) -> Path:
    return at_home(config.registry, "publishing.registry").absolute() if config.registry else store_root() / "registry"
