"""What a result was made from, found by the digests that its manifest names."""

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


def origins(made: Iterable[dict[str, Any]], among: dict[Path, dict[str, Any]]) -> set[Path]:
    """Everything that results were made from.

    Args:
        made: their manifests.
        among: as `results` returns them; several may hold the same files, and all of those count.
    """
    by_digest: dict[str, set[Path]] = {}
    for folder, manifest in among.items():
        for digest in (manifest["digest"], part_digest(manifest, "adapter")):
            by_digest.setdefault(digest, set()).add(folder)
    found: set[Path] = set()
    wanted = list(made)
    while wanted:
        for digest in wanted.pop()["identity"]["inputs"].values():
            new = by_digest.get(digest, set()) - found
            found |= new
            wanted += [among[folder] for folder in new]
    return found
