"""The facts of a published version."""

from typing import Any

from pydantic import Field

from tasks.store.facts import Facts


class VersionFacts(Facts):
    """An adapter's name, version and base, with the scores and figures of its answers as evaluation noted them.

    Args:
        training: key of the training that made it.
        begun_from: sha256 of the weights that training began from; empty: from nothing.
    """

    name: str
    version: str
    base: str = ""  # of versions of earlier formats
    revision: str = ""
    training: str = ""
    begun_from: str = ""
    scores: list[dict[str, Any]]
    health: dict[str, dict[str, float]] = Field({})
