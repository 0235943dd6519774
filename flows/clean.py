"""Room on the disk: removes results that no published version was made from and that are not among the latest."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.store.artifact import DamagedArtifact, files_digest, locked, read_manifest, store_root


def clean(keep_last: int) -> tuple[list[str], int]:
    """Remove all but the latest results of every stage and what published versions in the store were made from.

    Args:
        keep_last: results to keep of each stage.
    Returns:
        names of the folders removed, and the bytes freed.
    Raises:
        UserError: a run is using the store.
    """
    with alone():
        return _clean(keep_last)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """While results are removed.

    Raises:
        UserError: a run is using the store.
    """
    try:
        with locked("store", fcntl.LOCK_EX | fcntl.LOCK_NB):
            yield
    except BlockingIOError as error:
        raise UserError(
            f"A run is using {store_root()}; nothing was removed. Try again when it has finished."
        ) from error


def _clean(keep_last: int) -> tuple[list[str], int]:
    manifests = {folder: _manifest(folder) for folder in (store_root() / "artifacts").glob("*") if folder.is_dir()}
    keep = _latest(manifests, keep_last) | _published(manifests)
    keep |= {folder for folder in manifests if folder.name.startswith("model-")}  # what adapters stand on
    removed, freed = [], 0
    for folder in manifests.keys() - keep:
        freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        shutil.rmtree(folder)
        removed.append(folder.name)
    return sorted(removed), freed


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        return read_manifest(folder)
    except DamagedArtifact:  # half written or broken: nothing can use it
        return {}


def _latest(manifests: dict[Path, dict[str, Any]], keep_last: int) -> set[Path]:
    stages: dict[str, list[Path]] = {}
    for folder, manifest in sorted(manifests.items(), key=lambda item: item[1].get("created", ""), reverse=True):
        if manifest:
            stages.setdefault(manifest["identity"]["stage"], []).append(folder)
    return {folder for folders in stages.values() for folder in folders[:keep_last]}


def _published(manifests: dict[Path, dict[str, Any]]) -> set[Path]:
    """Everything the versions in the store's registry were made from, found by the digests they name."""
    by_digest: dict[str, set[Path]] = {}
    for folder, manifest in manifests.items():
        if manifest:
            by_digest.setdefault(manifest["digest"], set()).add(folder)
            adapter = {n: f for n, f in manifest["files"].items() if n.startswith("adapter/")}
            by_digest.setdefault(files_digest(adapter), set()).add(folder)
    kept: set[Path] = set()
    wanted = [_manifest(version) for version in (store_root() / "registry").glob("*/v*")]
    while wanted:
        manifest = wanted.pop()
        for digest in manifest["identity"]["inputs"].values() if manifest else ():
            new = by_digest.get(digest, set()) - kept
            kept |= new
            wanted += [manifests[folder] for folder in new]
    return kept
