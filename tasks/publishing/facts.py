"""The facts of a published version."""

from typing import Any

from pydantic import Field

from tasks.store.facts import Facts


class VersionFacts(Facts):
    """Facts of a published version; scores and health are those of evaluation.

    Args:
        training: key of the training that made the adapter.
        begun_from: sha256 of the adapter's weights that training began from; empty: from a new adapter.
    """

    name: str
    version: str
    base: str = ""  # of versions of earlier formats
    revision: str = ""
    training: str = ""
    begun_from: str = ""
    scores: list[dict[str, Any]]
    health: dict[str, dict[str, float]] = Field({})
