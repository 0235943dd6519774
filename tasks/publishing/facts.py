"""What publishing notes of a version."""

from typing import Any

from tasks.store.facts import Facts


class VersionFacts(Facts):
    """Name and version of an adapter, with the scores and figures of its answers as evaluation noted them."""

    name: str
    version: str
    scores: list[dict[str, Any]]
    health: dict[str, dict[str, float]]
