"""What a retrain's rows have new, compared with those of the adapter's last version that was made from others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.publishing.registry import versions
from tasks.store.artifact import ArtifactRef, DamagedArtifact, files_digest, read_manifest, reference, store_root

INPUTS = {"publish": "adapter", "train": "tokens", "tokenize": "prompts", "format": "rows"}
"""Stage → the input that leads to its rows."""


def earlier_rows(registry: Path, rows: ArtifactRef) -> tuple[str, ArtifactRef] | None:
    """The rows to compare with, and the version made from them.

    Args:
        registry: folder of the adapter's versions.
        rows: those of this run.
    """
    there = list(reversed(versions(registry)))
    by_digest = dict(_manifests()) if there else {}
    for version in there:
        try:
            found = _rows_of(read_manifest(version), by_digest)
            if found and found.digest != rows.digest:
                found.verify()
                return version.name, found
        except DamagedArtifact:
            continue
    return None


def _rows_of(manifest: dict[str, Any] | None, by_digest: dict[str, tuple[Path, dict[str, Any]]]) -> ArtifactRef | None:
    folder = None
    while manifest and (name := INPUTS.get(manifest["identity"]["stage"])):
        folder, manifest = by_digest.get(manifest["identity"]["inputs"].get(name, ""), (None, None))
    return reference(folder, manifest) if folder and manifest else None


def _manifests() -> Iterator[tuple[str, tuple[Path, dict[str, Any]]]]:
    """Digest of a result, and of an adapter's files alone → its folder and manifest."""
    for stage in ("train", "tokenize", "format", "download"):
        for folder in (store_root() / "artifacts").glob(f"{stage}-*"):
            try:
                manifest = read_manifest(folder)
            except DamagedArtifact:
                continue
            yield manifest["digest"], (folder, manifest)
            if stage == "train":
                adapter = {name: file for name, file in manifest["files"].items() if name.startswith("adapter/")}
                yield files_digest(adapter), (folder, manifest)


def sentence(changes: dict[str, Any]) -> str:
    """The changes in words."""
    counts = ", ".join(f"{changes[what]:,} {what}" for what in ("added", "removed", "changed", "same"))
    return f"rows since {changes['since']}: {counts}"
