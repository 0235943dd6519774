"""Which results hold the files that a digest names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.store.artifact import DamagedArtifact, part_digest, read_manifest, store_root


def readable(folders: Iterable[Path]) -> dict[Path, dict[str, Any]]:
    """Folder → manifest of those that have a whole one."""
    found = {}
    for folder in folders:
        try:
            found[folder] = read_manifest(folder)
        except DamagedArtifact:
            continue
    return found


def results() -> dict[Path, dict[str, Any]]:
    """Folder → manifest of the results in the store."""
    return readable((store_root() / "artifacts").glob("[!.]*"))


def by_digest(manifests: dict[Path, dict[str, Any]]) -> dict[str, list[Path]]:
    """Digest of a result, and of an adapter's files alone → the folders that hold it."""
    found: dict[str, list[Path]] = {}
    for folder, manifest in manifests.items():
        for digest in (manifest["digest"], part_digest(manifest, "adapter")):
            found.setdefault(digest, []).append(folder)
    return found
