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
    """A decision for people; terminal, UI, report, summary and registry show the same sentence.

    Args:
        outcome: of the decision, or `better` for what the gate found, whatever followed.
        champion: the version that stays in use; empty: none.
        why: the reason.
        name: of the adapter, for the command that approves.
    """
    return _SENTENCES[outcome].format(version=version, champion=champion or "the base", why=why.rstrip("."), name=name)


class Decision(BaseModel):
    """The result of a comparison.

    Args:
        outcome: `promoted`; `kept`: the champion stays in use; `waiting` for a person's approval; `refused`: better,
            but it did not pass the check in a separate process.
        sentence: for people.
        version: the candidate.
        champion: the version in use afterwards; empty: none.
        facts: the numbers, if scores were compared: metric, before, after, rows, groups, gain, p_value, level, smallest
            (the gain that could have been shown), look, comparisons.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outcome: Outcome
    sentence: str
    version: str
    champion: str
    facts: dict[str, Any] = {}


Kind = Literal["opened", "look", "decision", "refused", "waiting", "move"]


class Entry(BaseModel):
    """A line of the history.

    Args:
        number: of the line, from 0, so that a missing line is detected.
        at: UTC.
        by: the run or the person.
        what: `opened`: a life of the test rows begins, with `version` in use. `look`: scores are about to be read.
            `decision`: the result. `refused`: the version did not load. `waiting`: it needs a person's
            approval. `move`: `version` replaces `champion`.
        version: the candidate; in a move, the new champion.
        champion: the one it is compared with, or that it replaces; empty: the base.
        adapter: digest of the version's weights, because the number of a deleted version is given to another one.
        reason: a sentence; of a decision, the reason alone.
        key: of a look and its decision.
        fresh: the part of the error rate that a look uses.
        level: level of a look's test: `fresh`, and what the look before passed on.
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
        """The entry as a sentence."""
        if self.what != "decision":
            return self.reason
        return sentence("better" if self.better else "kept", self.version, self.champion, self.reason)


class CleanRoomJob(BaseModel):
    """Folders of a version and of its base, and stored answers to check; without rows the version is loaded only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    base: str
    probes: Probes
