"""The champion as a third model: whether it can be compared, and the rows that it was trained on."""

from pathlib import Path
from typing import Any

from tasks.config import FormattingConfig, TrainingConfig
from tasks.model import quantization
from tasks.store.artifact import ArtifactRef, check_folder
from tasks.store.manifest import DamagedArtifact, Manifest
from tasks.store.model import BaseModelRef
from tasks.store.origins import by_digest, results

_WEIGHTS = "adapter/adapter_model.safetensors"
_NOT_IN_A_PROMPT = {"formatting.references", "formatting.input_column"}


def why_not(champion: ArtifactRef, training: dict[str, Any], prompts: ArtifactRef, model: BaseModelRef) -> str:
    """Why this version cannot answer the rows of this run, as a sentence; empty if it can.

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
    """The manifest of a version's training; None if its result is not in this store."""
    manifests = results()
    found = by_digest(manifests).get(version.manifest.identity.inputs["adapter"], [])
    return manifests[found[0]] if found else None


def trained_before(adapter: ArtifactRef, champion: ArtifactRef | None) -> tuple[list[Path], str]:
    """Earlier training data that may contain held-out rows. The candidate's own contains none: formatting removed them.

    Args:
        adapter: the candidate's training.
    Returns:
        folders with the prompts of the champion's training, and of the adapters that champion and candidate continued;
        and a sentence if such a folder is not in this store.
    """
    if not champion and "start" not in adapter.manifest.identity.inputs:
        return [], ""
    manifests = results()
    holding = by_digest(manifests)
    weights = {m.files[_WEIGHTS].sha256: m for m in manifests.values() if _WEIGHTS in m.files}

    def prompts(training: Manifest | None) -> list[Path]:
        """Of a training and of those it continued, newest first; raises LookupError if one is not in the store."""
        found: list[Path] = []
        while training:
            tokens = manifests[holding[training.identity.inputs["tokens"]][0]]
            found.append(holding[tokens.identity.inputs["prompts"]][0])
            check_folder(found[-1])
            start = training.identity.inputs.get("start")
            if start is None:
                return found
            training = weights[start]
        raise LookupError

    known, gone = list[Path](), list[str]()
    for who, training, first in (
        (champion.path.name if champion else "", origin(champion) if champion else None, 0),
        ("the adapter that training begins from", adapter.manifest, 1),
    ):
        try:
            known += prompts(training)[first:] if who else []
        except (LookupError, DamagedArtifact):
            gone.append(who)
    said = f"what {' and '.join(gone)} was trained on is not in this store; held-out rows among it are compared"
    return sorted(set(known)), said if gone else ""
