"""A version beside the earlier ones of its adapter: what each scored, and what it took to train it."""

import contextlib
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.promotion import champion
from tasks.promotion.schema import Entry
from tasks.publishing.facts import VersionFacts
from tasks.publishing.registry import versions
from tasks.store.manifest import DamagedArtifact, Manifest, read_manifest
from tasks.store.origins import by_digest, results
from tasks.tokenization.facts import TokenFacts
from tasks.training.facts import TrainingFacts

MOST = 20
"""Versions that are told, the newest."""


def until(version: Path) -> list[Path]:
    """The intact versions up to this one, oldest first."""
    there = [each for each in versions(version.parent) if int(each.name[1:]) <= int(version.name[1:])]
    return there[-MOST:]


def beside(version: Path) -> list[dict[str, Any]]:
    """What is known of each version up to this one; None for training whose result is not in this store."""
    manifests = results()
    holding = by_digest(manifests)

    def origin(manifest: Manifest | None, name: str) -> Manifest | None:
        found = holding.get(manifest.identity.inputs.get(name, ""), []) if manifest else []
        return manifests[found[0]] if found else None

    history: list[Entry] = []
    with contextlib.suppress(UserError):
        history = champion.read(version.parent)
    told = []
    for folder in until(version):
        with contextlib.suppress(DamagedArtifact):
            manifest = read_manifest(folder)
            facts = manifest.facts(VersionFacts)
            trained = origin(manifest, "adapter")
            tokens = origin(trained, "tokens")
            training = trained.facts(TrainingFacts) if trained else None
            score = facts.scores[0] if facts.scores else {}
            told.append(
                {
                    "version": folder.name,
                    "created": manifest.created,
                    "decision": _decision(history, folder.name),
                    "rows": tokens.facts(TokenFacts).train if tokens else None,
                    "held_out": score.get("rows"),
                    "scores": {line["metric"]: line["tuned"] for line in facts.scores},
                    "loss": training.loss_last if training else None,
                    "tokens_per_second": training.tokens_per_second if training else None,
                    "seconds": training.seconds if training else None,
                }
            )
    return told


def _decision(history: list[Entry], version: str) -> str:
    if champion.champion_of(history) == version:
        return "in use"
    if any(entry.what == "move" and entry.version == version for entry in history):
        return "was in use"
    decided = [entry for entry in history if entry.what == "decision" and entry.version == version]
    return ("better" if decided[-1].better else "no better") if decided else "not compared"
