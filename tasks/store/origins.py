"""Finds the results in the store that a digest in an identity refers to."""

from pathlib import Path

from tasks.store.artifact import ArtifactRef, reference
from tasks.store.manifest import Manifest, readable
from tasks.store.root import store_root


def results() -> dict[Path, Manifest]:
    """Folder → manifest of the results in the store."""
    return readable((store_root() / "artifacts").glob("[!.]*"))


def by_digest(manifests: dict[Path, Manifest]) -> dict[str, list[Path]]:
    """Digest of a result, or of its `adapter` folder → the folders that have it."""
    found: dict[str, list[Path]] = {}
    for folder, manifest in manifests.items():
        for digest in (manifest.digest, manifest.part("adapter")):
            found.setdefault(digest, []).append(folder)
    return found


def made_from(version: Manifest, manifests: dict[Path, Manifest], holding: dict[str, list[Path]]) -> list[ArtifactRef]:
    """Adapter, tokens, prompts and rows that a published version was made from, as far as they are in this store.

    By its adapter: scores that two runs share would also lead to the other run's rows.
    """
    found: list[ArtifactRef] = []
    for name in ("adapter", "tokens", "prompts", "rows"):
        if not (folders := holding.get(version.identity.inputs.get(name, ""))):
            break
        version = manifests[folders[0]]
        found.append(reference(folders[0], version))
    return found


def rows_of(version: Manifest, manifests: dict[Path, Manifest], holding: dict[str, list[Path]]) -> ArtifactRef | None:
    """The rows that a published version was made from; None where a result on the way is not in this store."""
    return next(iter(made_from(version, manifests, holding)[3:]), None)
