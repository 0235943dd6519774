"""What the room hands on, and what its child process is given."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.publishing.schema import Probes


class Decision(BaseModel):
    """What came of a comparison.

    Args:
        outcome: `promoted`; `kept`: the champion stays, or none; `waiting`: for a person's approval.
        sentence: for people.
        version: the candidate.
        champion: the version in use afterwards; empty: none.
        facts: the numbers, where scores were compared: metric, before, after, rows, groups, gain, p_value, level,
            smallest (the gain that could have been shown), look, comparisons.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Literal["promoted", "kept", "waiting"]
    sentence: str
    version: str
    champion: str
    facts: dict[str, Any] = {}


class CleanRoomJob(BaseModel):
    """What the process is given.

    Args:
        version: folder of the published version.
        base: folder of the base model.
        probes: see there; without rows, answers are not tried.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    base: str
    probes: Probes
