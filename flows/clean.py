"""Frees disk space: removes results that are not recent and from which no published version was made."""

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
    """Remove all results but the latest of every stage and those that published versions were made from.

    Args:
        keep_last: results to keep of each stage.
        dry_run: remove nothing.
    Returns:
        names of the folders removed, or to be removed, and their bytes.
    Raises:
        UserError: a run is using the store.
    """
    removed, freed = [], 0
    with exclusively():
        there = {folder for folder in (store_root() / "artifacts").glob("*") if folder.is_dir()}
        for folder in there - _needed(keep_last):
            freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            if not dry_run:
                shutil.rmtree(folder)
            removed.append(folder.name)
    return sorted(removed), freed


@contextlib.contextmanager
def exclusively() -> Iterator[None]:
    """Hold the store's lock, so that no run uses the store meanwhile.

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


def _needed(keep_last: int) -> set[Path]:
    """The latest results of every stage, the origins of published versions, their kept answers, and base models."""
    manifests, published = results(), list(_published())
    adapters = {"", *(version.identity.inputs.get("adapter", "") for version in published)}  # "": answers of a base
    answers = {folder: m.identity for folder, m in manifests.items() if m.identity.stage == "answers"}
    return (
        _latest(manifests, keep_last)
        | _origins(published, manifests)
        | {folder for folder, identity in answers.items() if identity.inputs["adapter"] in adapters}
        | set((store_root() / "artifacts").glob("model-*"))
    )


def _published() -> Iterator[Manifest]:
    """The manifest of every version in every registry.

    Raises:
        UserError: a manifest is damaged, so that the results it was made from are unknown.
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
    """Everything that results were made from, directly or indirectly; all folders that have the same files."""
    holding = by_digest(manifests)
    kept: set[Path] = set()
    wanted = list(made)
    while wanted:
        for digest in wanted.pop().identity.inputs.values():
            new = set(holding.get(digest, ())) - kept
            kept |= new
            wanted += [manifests[folder] for folder in new]
    return kept
