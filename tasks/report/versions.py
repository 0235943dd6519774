"""A version beside the earlier versions of its adapter: scores, decision, and cost of training."""

import contextlib
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.promotion import champion
from tasks.promotion.schema import Entry
from tasks.publishing.facts import VersionFacts
from tasks.publishing.registry import versions
from tasks.store.manifest import DamagedArtifact, read_manifest
from tasks.store.origins import by_digest, made_from, results
from tasks.tokenization.facts import TokenFacts
from tasks.training.facts import TrainingFacts

MOST = 20
"""The newest versions are shown, at most so many."""


def until(version: Path) -> list[Path]:
    """The last versions up to this one, oldest first."""
    there = [each for each in versions(version.parent) if int(each.name[1:]) <= int(version.name[1:])]
    return there[-MOST:]


def beside(version: Path) -> list[dict[str, Any]]:
    """What is known of each version up to this one. What training noted is None if its result is not in this store."""
    manifests = results()
    holding = by_digest(manifests)
    history: list[Entry] = []
    with contextlib.suppress(UserError):
        history = champion.read(version.parent)
    told = []
    for folder in until(version):
        with contextlib.suppress(DamagedArtifact):
            manifest = read_manifest(folder)
            facts = manifest.facts(VersionFacts)
            trained, tokens, *_ = [*made_from(manifest, manifests, holding), None, None]
            training = trained.facts(TrainingFacts) if trained else None
            told.append(
                {
                    "version": folder.name,
                    "created": manifest.created,
                    "decision": champion.standing(history, folder.name, manifest.identity.inputs.get("adapter", "")),
                    "rows": tokens.facts(TokenFacts).train if tokens else None,
                    "held_out": facts.scores[0].get("rows") if facts.scores else None,
                    "scores": {line["metric"]: line["tuned"] for line in facts.scores},
                    "loss": training.loss_last if training else None,
                    "tokens_per_second": training.tokens_per_second if training else None,
                    "seconds": training.seconds if training else None,
                }
            )
    return told
