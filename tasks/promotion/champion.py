"""The version of an adapter that is in use (its champion), and the history of decisions about it.

REGISTRY/<name>/champion        the pointer: a relative link to the version to serve, or a small file with its name
                                where the file system has no links. Replaced in one step
REGISTRY/<name>/history.jsonl   every look, decision and move, a checksummed line each; lines are only added
REGISTRY/<name>/README.md       the same for people (`tasks.promotion.task.page`)

The history is authoritative. A move is written there before the pointer is replaced. If the process is killed in
between, the next one completes the move. A pointer that names any other version was changed by hand; no decision is
made until a person records that change.
"""

import contextlib
import errno
import getpass
import os
import shutil
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tasks.errors import UserError
from tasks.promotion.schema import Entry, Kind
from tasks.publishing.registry import VERSION, group_may, registries, versions
from tasks.store import lines
from tasks.store.artifact import ArtifactRef, check_folder, locked, reference
from tasks.store.manifest import DamagedArtifact, read_manifest

POINTER, HISTORY = "champion", "history.jsonl"


class History:
    """The history of one adapter. Its lock is held."""

    def __init__(self, folder: Path, by: str, entries: list[Entry]) -> None:
        self.folder, self.by, self.entries = folder, by, entries

    @property
    def champion(self) -> str:
        """The version in use; empty: none."""
        return champion_of(self.entries)

    def add(self, what: Kind, **fields: Any) -> Entry:
        """Write a line to the disk, completely or not at all."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = Entry(number=len(self.entries), at=at, by=self.by, what=what, **fields)
        file, aside = self.folder / HISTORY, self.folder / f".{HISTORY}"
        aside.unlink(missing_ok=True)
        if self.entries:
            shutil.copyfile(file, aside)
        lines.append(aside, entry.model_dump())
        _replace(aside, file)
        self.entries.append(entry)
        return entry

    def move(self, version: str, reason: str) -> None:
        """Put a version in use. The caller has verified it."""
        adapter = weights(self.folder, version)
        self.add("move", version=version, champion=self.champion, reason=reason, adapter=adapter)
        point(self.folder, version)

    def open(self, version: str, reason: str) -> None:
        """Begin a life of the test rows, with a version in use."""
        self.add("opened", version=version, reason=reason, adapter=weights(self.folder, version))


def in_use(entries: list[Entry]) -> list[Entry]:
    """The entries that put a version in use, oldest first; the last one tells the champion."""
    return [entry for entry in entries if entry.what in ("opened", "move")]


def champion_of(entries: list[Entry]) -> str:
    """The version in use; empty: none."""
    return next((entry.version for entry in reversed(in_use(entries))), "")


def about(entries: list[Entry], version: str, adapter: str) -> list[Entry]:
    """Decisions about a version and its moves, oldest first.

    Args:
        adapter: digest of its weights: the number of a version that was deleted is given to another one.
    """
    return [e for e in entries if (e.version, e.adapter) == (version, adapter) and e.what != "look"]


def standing(entries: list[Entry], version: str, adapter: str) -> str:
    """What became of a version, in a word or two."""
    entries, put = about(entries, version, adapter), in_use(entries)
    if put and put[-1] in entries:
        return "in use"
    if in_use(entries):
        return "was in use"
    if not entries:
        return "not compared"
    last = entries[-1]
    return last.what if last.what in ("refused", "waiting") else "better" if last.better else "no better"


def looks(entries: list[Entry]) -> list[Entry]:
    """The looks since the present life of the test rows was opened; `better` where their decision says so."""
    opened = max((entry.number for entry in entries if entry.what == "opened"), default=0)
    better = {entry.key for entry in entries[opened:] if entry.what == "decision" and entry.better}
    return [e.model_copy(update={"better": e.key in better}) for e in entries[opened:] if e.what == "look"]


@contextlib.contextmanager
def held(folder: Path, by: str, moved_by_hand: bool = False) -> Iterator[History]:
    """Lock an adapter's registry folder and read its history; an interrupted move is completed.

    Args:
        folder: REGISTRY/<name>.
        moved_by_hand: accept a pointer that was changed by hand, because the caller records a move.
    Raises:
        UserError: the history is damaged, the pointer disagrees with it, or the registry cannot be written.
    """
    with _locked(folder):
        history = History(folder, by, read(folder))
        if not history.entries:  # a registry without a history: its newest intact version is the champion
            old = "the newest intact version from before this history; it was not compared"
            history.open(newest := _newest(folder), old if newest else "the first run")
        there, said = pointer(folder), history.champion
        if there != said:
            if not there or _lags(folder, there, in_use(history.entries)[-1]):
                point(folder, said)
            elif not moved_by_hand:
                raise UserError(
                    f"{folder / POINTER} points to {there.replace('?', 'no version')}, and {HISTORY} says "
                    f"{said or 'that none is in use'}: it was changed by hand. Record what you want: "
                    f"qlora-flow adapters promote {folder.name}@VERSION --reason TEXT."
                )
        yield history


def _lags(folder: Path, there: str, put: Entry) -> bool:
    """Whether the pointer still names the version before a move. If it was set after the move, a person set it."""
    moved = datetime.fromisoformat(put.at).timestamp()  # in whole seconds
    return there == put.champion and (folder / POINTER).lstat().st_mtime < moved + 1


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(f".{folder.name}", folder=folder.parent):
            yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise
        raise UserError(f"The registry {folder} cannot be written ({error.strerror}): {error.filename}.") from error


def renew(folder: Path, by: str, reason: str) -> str:
    """Begin a new life of the test rows, with no look spent. Returns what was done, in a sentence.

    A damaged history is kept beside the new one.
    """
    with _locked(folder):
        try:
            read(folder)
        except UserError:
            kept = folder / f"{HISTORY}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            with contextlib.suppress(FileNotFoundError):  # the whole file was lost
                shutil.copyfile(folder / HISTORY, kept)
            there = pointer(folder)
            now = "" if there == "?" else intact(folder, there).path.name if there else ""
            History(folder, by, []).open(now, f"{reason}; what is left of the damaged history is in {kept.name}")
            return (
                f"A new history of {folder.name} begins with {now or 'no version'} in use; the damaged one is {kept}."
            )
    with held(folder, by) as history:
        history.open(history.champion, reason)
        return f"A new life of the test rows of {folder.name} begins; {history.champion or 'no version'} stays in use."


def _newest(folder: Path) -> str:
    for version in reversed(versions(folder)):
        with contextlib.suppress(DamagedArtifact):
            check_folder(version)
            return version.name
    return ""


def begin(folder: Path, by: str) -> None:
    """Before a run: open a history where there is none.

    Raises:
        UserError: the run could not decide at its end: registry, history, pointer or champion is missing or damaged.
    """
    if not folder.parent.exists() and folder.parent in registries()[1:]:
        raise UserError(
            f"publishing.registry: {folder.parent} is gone, and versions were published to it. Is its disk mounted? If "
            "it moved, say where to; to begin anew, make an empty folder there."
        )
    with held(folder, by):
        current(folder)


def read(folder: Path) -> list[Entry]:
    """The history of an adapter, oldest first; empty where there is none.

    Raises:
        UserError: a line is damaged or missing, or a pointer has no history beside it.
    """
    if not (folder / HISTORY).exists() and pointer(folder):
        raise UserError(
            f"{folder / HISTORY} is missing beside {POINTER}, so looks may be lost and nothing is decided. Restore it "
            f"from a copy, or begin anew: qlora-flow adapters renew {folder.name} --reason TEXT."
        )
    try:
        entries = list(lines.read(folder / HISTORY, TypeAdapter(Entry)))
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{folder / HISTORY} cannot be read ({error.strerror}), and nothing is decided.") from error
    for number, entry in enumerate(entries):
        if entry is None or entry.number != number:
            raise UserError(
                f"{folder / HISTORY} is damaged at entry {number}, so looks may be lost and nothing is decided. "
                f"Restore it from a copy, or begin anew: qlora-flow adapters renew {folder.name} --reason TEXT."
            )
    return [entry for entry in entries if entry]


def pointer(folder: Path) -> str:
    """The version that the pointer names; empty without a pointer, `?` where its content names no version.

    Raises:
        UserError: it is a folder, because the registry was copied by a tool that follows links.
    """
    path = folder / POINTER
    if path.is_dir() and not path.is_symlink():
        raise UserError(f"{path} is a folder, and the pointer to the champion has that name; move it away.")
    try:
        name = str(path.readlink()) if path.is_symlink() else path.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        return "?"
    return name if VERSION.fullmatch(name) else "?"


def point(folder: Path, version: str) -> None:
    """Replace the pointer in one step; without a version, remove it."""
    path, aside = folder / POINTER, folder / f".{POINTER}"
    if not version:
        path.unlink(missing_ok=True)
        return
    aside.unlink(missing_ok=True)
    try:
        aside.symlink_to(version)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        aside.write_text(f"{version}\n")
    _replace(aside, path)


def _replace(aside: Path, file: Path) -> None:
    if not aside.is_symlink():
        group_may(aside, 0o040)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
    aside.replace(file)
    descriptor = os.open(file.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def opponent(folder: Path, adapter: str) -> ArtifactRef | None:
    """The version that an adapter is compared with: the champion, or the one of its earlier comparison. None: the base.

    So a repeated run compares the same two versions, and reuses scores and decision. Nothing is written.

    Args:
        folder: REGISTRY/<name>.
        adapter: digest of its weights.
    Raises:
        UserError: the champion is missing or damaged, or the history is.
    """
    for entry in reversed(read(folder)):
        if entry.what in ("look", "move") and entry.adapter == adapter:
            if not entry.champion:
                return None
            with contextlib.suppress(DamagedArtifact):
                return reference(folder / entry.champion, check_folder(folder / entry.champion))
    version = current(folder)
    return version if version and weights(folder, version.path.name) != adapter else None  # None: it is the champion


def current(folder: Path) -> ArtifactRef | None:
    """The version in use, with its checksums verified; None: there is none yet.

    Raises:
        UserError: it is missing or damaged, the history is, or another version has its number.
    """
    entries = read(folder)
    put = in_use(entries)[-1] if entries else None
    name = put.version if put else _newest(folder)
    version = intact(folder, name) if name else None
    if put and version and weights(folder, name) != put.adapter:
        raise UserError(
            f"{name} of {folder.name} has other weights than those that were put in use on {put.at[:10]}. Restore its "
            f"folder, or put a version in use: qlora-flow adapters promote {folder.name}@VERSION --reason TEXT."
        )
    return version


def intact(folder: Path, version: str) -> ArtifactRef:
    """A version, with its checksums verified.

    Raises:
        UserError: it is missing or damaged, or the name is not that of a version.
    """
    if not VERSION.fullmatch(version):
        raise UserError(f"{version!r} names no version of {folder.name}; a version is called v0001.")
    try:
        return reference(folder / version, check_folder(folder / version))
    except DamagedArtifact as error:
        others = [path.name for path in versions(folder) if path.name != version]
        another = f"put another in use: qlora-flow adapters promote {folder.name}@{others[-1]}." if others else ""
        raise UserError(
            f"{version} of {folder.name} is missing or damaged ({error}). Restore its folder, or "
            + (another or f"remove {folder} with its history to begin anew.")
        ) from error


def weights(folder: Path, version: str) -> str:
    """Digest of a version's weights; empty for the base."""
    return read_manifest(folder / version).identity.inputs.get("adapter", "") if version else ""


def person() -> str:
    """The user who gave the command."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # the user id has no name on this machine
        user = f"user {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
