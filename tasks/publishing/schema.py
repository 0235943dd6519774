"""The stored answers of a published version."""

from typing import Any

from pydantic import BaseModel, ConfigDict

PROBES = "probes.json"
"""Not uploaded to the Hub, because it contains rows of the data."""
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
    """Rows with which a version is checked before it is put in use.

    Args:
        training: the fields for loading the base (tasks.model.quantization.FIELDS).
        rows: at most MOST_PROBES, the shortest of those with the largest gain.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: dict[str, Any]
    rows: list[Probe]
