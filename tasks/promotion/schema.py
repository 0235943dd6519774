"""Decisions, lines of the history, and the job of the child process."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.publishing.schema import Probes

Outcome = Literal["promoted", "kept", "waiting", "refused"]
_SENTENCES = {
    "promoted": "Promoted {version}: {why}.",
    "kept": "Kept {champion}: {why}.",
    "waiting": "{version} waits for approval: {why}. "
    "Approve: qlora-flow adapters promote {name}@{version} --reason TEXT.",
    "refused": "Refused {version}, and {champion} stays in use: {why}.",
    "better": "{version} is better: {why}.",
}


def sentence(outcome: Outcome | Literal["better"], version: str, champion: str, why: str, name: str = "") -> str:
    """What was decided, for people: the same on the terminal, in the UI, the report, the summary and the registry.

    Args:
        outcome: as of a decision; `better`: what the gate found, whatever followed from it.
        champion: the version that stays in use; empty: none.
        why: what follows "because", without a full stop.
        name: of the adapter, where a person is to do something.
    """
    return _SENTENCES[outcome].format(version=version, champion=champion or "the base", why=why.rstrip("."), name=name)


class Decision(BaseModel):
    """What came of a comparison.

    Args:
        outcome: `promoted`; `kept`: the champion stays, or none; `waiting`: for a person's approval; `refused`: it is
            better, and does not load in a process of its own.
        sentence: for people.
        version: the candidate.
        champion: the version in use afterwards; empty: none.
        facts: the numbers, where scores were compared: metric, before, after, rows, groups, gain, p_value, level,
            smallest (the gain that could have been shown), look, comparisons.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome
    sentence: str
    version: str
    champion: str
    facts: dict[str, Any] = {}


Kind = Literal["opened", "look", "decision", "refused", "move"]


class Entry(BaseModel):
    """A line of the history.

    Args:
        number: of the line, from 0: a line that is taken out is noticed.
        at: UTC.
        by: the run or the person.
        what: `opened`: a life of the test rows begins, with `version` in use. `look`: scores are about to be read.
            `decision`: what they said. `refused`: the version did not load. `move`: `version` takes the place of
            `champion`.
        version: the candidate; in a move, the new champion.
        champion: the one it is compared with, or that it replaces; empty: the base.
        adapter: digest of the version's weights; if its folder is deleted, its number is given to another version.
        reason: a sentence; of a decision, what follows "because".
        key: of a look and its decision.
        fresh, level: of a look, as `gate.next_level` gives them.
        better: of a decision.
        facts: numbers of a decision.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    number: int
    at: str
    by: str
    what: Kind
    version: str = ""
    champion: str = ""
    adapter: str = ""
    reason: str = ""
    key: str = ""
    fresh: float = 0.0
    level: float = 0.0
    better: bool = False
    facts: dict[str, Any] = {}

    @property
    def said(self) -> str:
        """As a sentence."""
        if self.what != "decision":
            return self.reason
        return sentence("better" if self.better else "kept", self.version, self.champion, self.reason)


class CleanRoomJob(BaseModel):
    """The job of the process that loads a version.

    Args:
        version: folder of the published version.
        base: folder of the base model.
        probes: see there; without rows, answers are not tried.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    base: str
    probes: Probes
