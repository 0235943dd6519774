"""The version in use, as a third model: whether it can be compared, and what it was trained on."""

import contextlib
from pathlib import Path
from typing import Any

from tasks.config import FormattingConfig, TrainingConfig
from tasks.model import quantization
from tasks.store.artifact import ArtifactRef, check_folder
from tasks.store.manifest import DamagedArtifact, Manifest
from tasks.store.model import BaseModelRef
from tasks.store.origins import by_digest, results

_NOT_IN_A_PROMPT = {"formatting.references", "formatting.input_column"}


def why_not(champion: ArtifactRef, training: dict[str, Any], prompts: ArtifactRef, model: BaseModelRef) -> str:
    """A sentence that says why this version cannot answer the rows of this run; empty where it can.

    Args:
        training: fields of the candidate's training.
    """
    name = champion.path.name
    try:
        champion.verify()
        made = champion.manifest.identity
    except DamagedArtifact as error:
        return f"{name} is damaged: {error}"
    if made.inputs.get("model") != model.digest:
        return f"{name} has another base or tokenizer than this run"
    ours = {f"formatting.{field}": value for field, value in prompts.manifest.fields(FormattingConfig)}
    for field in sorted(ours.keys() - _NOT_IN_A_PROMPT):
        if made.config.get(field, ours[field]) != ours[field]:
            return f"{name} was trained with another {field}"
    if trained := origin(champion):
        theirs = trained.fields(TrainingConfig).model_dump()
        for field in quantization.FIELDS:
            if theirs[field] != training[field]:
                return f"{name} was trained with another training.{field}"
    return ""


def origin(version: ArtifactRef) -> Manifest | None:
    """The manifest of the training that made a version; None where its result is not in this store."""
    manifests = results()
    found = by_digest(manifests).get(version.manifest.identity.inputs["adapter"], [])
    return manifests[found[0]] if found else None


def rows_of(version: ArtifactRef) -> Path | None:
    """The folder with the prompts that a version was trained on; None where this store has them no more."""
    manifests, digest = results(), version.manifest.identity.inputs["adapter"]
    holding = by_digest(manifests)
    for name in ("tokens", "prompts"):
        found = holding.get(digest, [])
        digest = manifests[found[0]].identity.inputs.get(name, "") if found else ""
    for folder in holding.get(digest, []):
        with contextlib.suppress(DamagedArtifact):
            check_folder(folder)
            return folder
    return None
