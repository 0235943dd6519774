"""Frees disk space: removes results that are neither recent nor an origin of a version, and versions nobody used."""

import contextlib
import fcntl
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import UserError
from tasks.promotion.champion import read
from tasks.promotion.schema import Entry
from tasks.publishing.registry import VERSION, registries, versions
from tasks.store.artifact import locked
from tasks.store.manifest import DamagedArtifact, Manifest, read_manifest
from tasks.store.origins import by_digest, results
from tasks.store.remote import Remote
from tasks.store.root import store_root

LONGEST_LOG = 10 << 20
"""Bytes of server.log and of worker.log from which they are shortened to their last tenth."""
REMOTE_DAYS = 180
"""After which a result in the remote store, that nobody has fetched since, is removed there."""


def clean(keep_last: int, keep_days: int = 30, dry_run: bool = False) -> tuple[list[str], int]:
    """Remove what neither the latest runs nor versions that are or were in use need; docs/operations.md has the rules.

    Args:
        keep_last: results to keep of each stage, and versions of each adapter.
        keep_days: age in days at which versions that were never in use, and abandoned checkpoints, are removed.
        dry_run: remove nothing.
    Returns:
        names of what is removed, or would be, and its bytes on this machine's disk.
    Raises:
        UserError: a run is using the store, or what versions were made from cannot be known.
    """
    with exclusively():
        before = max(0, time.time() - 86_400 * keep_days)
        published = dict(_published())
        gone = set(_never_in_use(published, keep_last, before))
        kept = {folder: manifest for folder, manifest in published.items() if folder not in gone}
        reports = tuple(f"{version.parent.name}-{version.name}-" for version in kept)  # and 12 hex digits .html
        gone |= _unneeded_results([*kept.values()], keep_last)
        gone |= {folder for folder in store_root().glob("work/*") if _changed(folder) < before}
        gone |= {file for file in store_root().glob("reports/*.html") if not file.name.startswith(reports)}
        everything = [*gone, *_useless_files(gone)]
        freed = sum(file.stat().st_size for path in everything for file in (path, *path.rglob("*")) if file.is_file())
        if not dry_run:
            for path in everything:
                _remove(path)
            for log in store_root().glob("*.log"):
                shorten(log)
            if remote := Remote.configured():
                remote.expire(REMOTE_DAYS, {folder.name for folder in results()})
        return sorted(str(path).removeprefix(f"{store_root()}/") for path in gone), freed


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


def _published() -> Iterator[tuple[Path, Manifest]]:
    """Every version in every registry, with its manifest.

    Raises:
        UserError: a registry is gone or a manifest damaged, so that what versions were made from is unknown.
    """
    own, *others = registries()
    if gone := [registry for registry in others if not registry.exists()]:
        raise UserError(
            f"Nothing was removed, because what the versions in {gone[0]} were made from is unknown: the folder is "
            "gone. Is its disk mounted? If nothing in it is needed any more, make an empty folder there."
        )
    for registry in (own, *others):
        for version in (version for folder in registry.glob("*") for version in versions(folder)):
            try:
                yield version, read_manifest(version)
            except DamagedArtifact as error:
                raise UserError(
                    f"Nothing was removed, because what {version} was made from is unknown: {error}. Restore that "
                    "file, or remove that version."
                ) from error


def _never_in_use(published: dict[Path, Manifest], keep_last: int, before: float) -> Iterator[Path]:
    """Old versions that were neither in use nor wait for approval. Without a history, all versions stay."""
    day = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(before))
    for folder in {version.parent for version in published}:
        if entries := read(folder):
            used = {name for entry in entries for name in _wanted(entry)}
            for version in versions(folder)[:-keep_last]:
                if version.name not in used and published[version].created < day:
                    yield version


def _wanted(entry: Entry) -> tuple[str, ...]:
    """Versions that an entry of the history shows to be of use: in use, replaced, or better and perhaps waiting."""
    if entry.what in ("opened", "move"):
        return entry.version, entry.champion
    return (entry.version,) if entry.better else ()


def _unneeded_results(published: list[Manifest], keep_last: int) -> set[Path]:
    """Results that are neither among the latest of their stage nor an origin of a version."""
    manifests, stages = results(), dict[str, list[Path]]()
    for folder, manifest in sorted(manifests.items(), key=lambda item: item[1].created, reverse=True):
        stages.setdefault(manifest.identity.stage, []).append(folder)
    keep = {folder for folders in stages.values() for folder in folders[:keep_last]} | origins(published, manifests)
    adapters = {"", *(version.identity.inputs.get("adapter", "") for version in published)}  # "": answers of a base
    bases = {version.identity.inputs.get("model", "") for version in published}
    for folder in stages.get("answers", []):
        of = manifests[folder].identity.inputs
        if of["adapter"] in adapters and of["model"] in bases:
            keep.add(folder)
    there = {folder for folder in (store_root() / "artifacts").glob("*") if folder.is_dir()}
    return {folder for folder in there - keep if not folder.name.startswith("model-")}  # base models of adapters


def origins(made: list[Manifest], manifests: dict[Path, Manifest]) -> set[Path]:
    """Everything that results were made from, directly or indirectly; all folders that have the same files."""
    holding, kept, wanted = by_digest(manifests), set[Path](), list(made)
    while wanted:
        for digest in wanted.pop().identity.inputs.values():
            new = set(holding.get(digest, ())) - kept
            kept |= new
            wanted += [manifests[folder] for folder in new]
    return kept


def _useless_files(gone: set[Path]) -> Iterator[Path]:
    """Locks of results that are gone, and Prefect's records of them."""

    def lost(name: str) -> bool:
        return (result := store_root() / name) in gone or not result.exists()

    for lock in store_root().glob("locks/*.lock"):
        if lock.stem != "store" and lost(f"artifacts/{lock.stem}"):
            yield lock
    for record in store_root().glob("results/*"):
        named = re.findall(r'\\"name\\":\\"([^"\\]+)', record.read_text("utf-8", "replace")) if record.is_file() else []
        if any(map(lost, named)):
            yield record


def shorten(log: Path) -> None:
    """Keep the end of a log; who writes it appends, and goes on behind that."""
    if (size := log.stat().st_size) > LONGEST_LOG:
        with log.open("r+b") as file:
            file.seek(size - LONGEST_LOG // 10)
            file.readline()
            end = file.read()
            file.seek(0)
            file.write(end)
            file.truncate()


def _changed(folder: Path) -> float:
    """When something in a folder was last written, in seconds since 1970."""
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _remove(path: Path) -> None:
    """In one step: what is half removed has a name that nobody looks for."""
    if not path.is_dir():
        path.unlink()
        return
    aside = path.with_name(f".{path.name}")
    registry = path.parent.parent if VERSION.fullmatch(path.name) else None
    with locked(f".{path.parent.name}", folder=registry) if registry else contextlib.nullcontext():
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    shutil.rmtree(aside)
