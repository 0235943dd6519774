"""What a retrain's rows have new, compared with those of the adapter's last version that was made from others."""

import contextlib
from pathlib import Path
from typing import Any

from tasks.publishing.registry import versions
from tasks.store.artifact import ArtifactRef, reference
from tasks.store.manifest import DamagedArtifact, Manifest, readable
from tasks.store.origins import by_digest, results

INPUTS = {"publish": "adapter", "train": "tokens", "tokenize": "prompts", "format": "rows"}
"""Stage → the input that leads to its rows."""


def earlier_rows(registry: Path, rows: ArtifactRef) -> tuple[str, ArtifactRef] | None:
    """The rows to compare with, and the version made from them.

    Args:
        registry: folder of the adapter's versions.
        rows: those of this run.
    """
    there = list(reversed(versions(registry)))
    manifests = results() if there else {}
    holding = by_digest(manifests)
    for version, manifest in readable(there).items():
        found = _rows_of(manifest, manifests, holding)
        if found and found.digest != rows.digest:
            with contextlib.suppress(DamagedArtifact, OSError):
                found.verify()
                return version.name, found
    return None


def _rows_of(manifest: Manifest, manifests: dict[Path, Manifest], holding: dict[str, list[Path]]) -> ArtifactRef | None:
    """Along one input of each stage: scores that two runs share would lead to the other run's rows as well."""
    folder = None
    while name := INPUTS.get(manifest.identity.stage):
        if not (folders := holding.get(manifest.identity.inputs.get(name, ""))):
            return None
        folder = folders[0]
        manifest = manifests[folder]
    return reference(folder, manifest) if folder else None


def sentence(changes: dict[str, Any]) -> str:
    """The changes in words."""
    counts = ", ".join(f"{changes[what]:,} {what}" for what in ("added", "removed", "changed", "same"))
    return f"rows since {changes['since']}: {counts}"
