"""What a published version holds beside the adapter."""

from typing import Any

from pydantic import BaseModel, ConfigDict

PROBES = "probes.json"
"""Stored answers; not uploaded to the Hub, because they are rows of the data."""
MOST_PROBES = 8


class Probe(BaseModel):
    """A test row on which the adapter is better than its base.

    Args:
        input_ids: the whole row.
        labels: the same ids where the loss counts, else -100.
        base, tuned: mean negative log-likelihood of the target tokens, in nats, as evaluation measured it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_ids: list[int]
    labels: list[int]
    base: float
    tuned: float


class Probes(BaseModel):
    """Rows that a version is tried with before it is put in use.

    Args:
        training: the fields that say how the base is loaded (tasks.model.quantization.FIELDS).
        rows: at most eight, the shortest among those with the greatest gain.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: dict[str, Any]
    rows: list[Probe]
