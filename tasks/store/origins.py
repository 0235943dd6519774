"""Which results hold the files that a digest names."""

from pathlib import Path

from tasks.store.manifest import Manifest, readable
from tasks.store.root import store_root


def results() -> dict[Path, Manifest]:
    """Folder → manifest of the results in the store."""
    return readable((store_root() / "artifacts").glob("[!.]*"))


def by_digest(manifests: dict[Path, Manifest]) -> dict[str, list[Path]]:
    """Digest of a result, and of an adapter's files alone → the folders that hold it."""
    found: dict[str, list[Path]] = {}
    for folder, manifest in manifests.items():
        for digest in (manifest.digest, manifest.part("adapter")):
            found.setdefault(digest, []).append(folder)
    return found
