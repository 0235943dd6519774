"""Frees disk space: removes results that are neither recent nor an origin of a published version."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tasks.errors import UserError
from tasks.publishing.registry import registries, versions
from tasks.store.artifact import locked
from tasks.store.manifest import DamagedArtifact, Manifest, read_manifest
from tasks.store.origins import by_digest, results
from tasks.store.root import store_root


def clean(keep_last: int, dry_run: bool = False) -> tuple[list[str], int]:
    """Remove all but the latest results of every stage and what published versions were made from.

    Args:
        keep_last: results to keep of each stage.
        dry_run: remove nothing.
    Returns:
        names of the folders removed, or to be removed, and their bytes.
    Raises:
        UserError: a run is using the store.
    """
    with exclusively():
        return _clean(keep_last, dry_run)


@contextlib.contextmanager
def exclusively() -> Iterator[None]:
    """Hold the store, so that no run uses it meanwhile.

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


def _clean(keep_last: int, dry_run: bool) -> tuple[list[str], int]:
    manifests, published = results(), list(_published())
    keep = _latest(manifests, keep_last) | _origins(published, manifests)
    adapters = {"", *(version.identity.inputs.get("adapter", "") for version in published)}  # "": answers of a base
    answers = {folder: m.identity for folder, m in manifests.items() if m.identity.stage == "answers"}
    keep |= {folder for folder, identity in answers.items() if identity.inputs["adapter"] in adapters}
    there = {folder for folder in (store_root() / "artifacts").glob("*") if folder.is_dir()}
    keep |= {folder for folder in there if folder.name.startswith("model-")}  # base models of adapters
    removed, freed = [], 0
    for folder in there - keep:
        freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        if not dry_run:
            shutil.rmtree(folder)
        removed.append(folder.name)
    return sorted(removed), freed


def _published() -> Iterator[Manifest]:
    """The manifest of every version in every registry.

    Raises:
        UserError: one is damaged: what it was made from could be removed.
    """
    for registry in registries():
        for version in (version for folder in registry.glob("*") for version in versions(folder)):
            try:
                yield read_manifest(version)
            except DamagedArtifact as error:
                raise UserError(
                    f"Nothing was removed, because what {version} was made from is unknown: {error}. Restore that "
                    "file, or remove that version."
                ) from error


def _latest(manifests: dict[Path, Manifest], keep_last: int) -> set[Path]:
    stages: dict[str, list[Path]] = {}
    for folder, manifest in sorted(manifests.items(), key=lambda item: item[1].created, reverse=True):
        stages.setdefault(manifest.identity.stage, []).append(folder)
    return {folder for folders in stages.values() for folder in folders[:keep_last]}


def _origins(made: Iterable[Manifest], manifests: dict[Path, Manifest]) -> set[Path]:
    """Everything that results were made from; of several folders with the same files, all."""
    holding = by_digest(manifests)
    kept: set[Path] = set()
    wanted = list(made)
    while wanted:
        for digest in wanted.pop().identity.inputs.values():
            new = set(holding.get(digest, ())) - kept
            kept |= new
            wanted += [manifests[folder] for folder in new]
    return kept
