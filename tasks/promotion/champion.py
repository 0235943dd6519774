"""Which version of an adapter is in use, and everything that was decided about it.

REGISTRY/<name>/champion        the version to serve: a relative link, or a small file with its name where the file
                                system has no links. Replaced in one step
REGISTRY/<name>/history.jsonl   every look, decision and move, a checksummed line each; lines are only added

The history decides. A move is written there before the pointer follows, so a killed process leaves a move that the next
one completes. A pointer that says anything else was changed by hand, and nothing is decided until that is recorded.
"""

import contextlib
import errno
import getpass
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from tasks.errors import UserError
from tasks.publishing.registry import VERSION, group_may, versions
from tasks.store import lines
from tasks.store.artifact import ArtifactRef, check_folder, locked, reference
from tasks.store.manifest import DamagedArtifact, read_manifest

POINTER, HISTORY = "champion", "history.jsonl"


Kind = Literal["opened", "look", "decision", "move"]


class Entry(BaseModel):
    """A line of the history.

    Args:
        number: of the line, from 0: a line that is taken out is noticed.
        at: UTC.
        by: the run or the person.
        what: `opened`: a life of the test rows begins, with `version` in use. `look`: scores are about to be read.
            `decision`: what they said. `move`: `version` takes the place of `champion`.
        version: the candidate; in a move, the new champion.
        champion: the one it is compared with, or that it replaces; empty: the base.
        adapter: digest of the candidate's weights.
        reason: a sentence.
        key: of a look and its decision.
        fresh, level: of a look, as `gate.next_level` gives them.
        better: of a decision.
        facts: numbers of a decision.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    number: int
    at: str
    by: str
    what: Kind
    version: str = ""
    champion: str = ""
    adapter: str = ""
    reason: str = ""
    key: str = ""
    fresh: float = 0.0
    level: float = 0.0
    better: bool = False
    facts: dict[str, Any] = {}


class History:
    """The history of one adapter, while its lock is held."""

    def __init__(self, folder: Path, by: str) -> None:
        self.folder, self.by = folder, by
        self.entries = read(folder)

    @property
    def champion(self) -> str:
        """The version in use; empty: none."""
        return champion_of(self.entries)

    def add(self, what: Kind, **fields: Any) -> Entry:
        """Write a line: whole, on the disk, or not at all."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = Entry(number=len(self.entries), at=at, by=self.by, what=what, **fields)
        file, aside = self.folder / HISTORY, self.folder / f".{HISTORY}"
        aside.unlink(missing_ok=True)
        if file.exists():
            shutil.copyfile(file, aside)
        lines.append(aside, entry.model_dump())
        _replace(aside, file)
        self.entries.append(entry)
        return entry

    def move(self, version: str, reason: str, adapter: str = "") -> None:
        """Put a version in use. The caller has verified it."""
        self.add("move", version=version, champion=self.champion, reason=reason, adapter=adapter)
        point(self.folder, version)

    def life(self) -> list[Entry]:
        """The entries since the test rows' present life was opened."""
        opened = max(entry.number for entry in self.entries if entry.what == "opened")
        return self.entries[opened:]


def champion_of(entries: list[Entry]) -> str:
    return next((entry.version for entry in reversed(entries) if entry.what in ("opened", "move")), "")


@contextlib.contextmanager
def held(folder: Path, by: str, moved_by_hand: bool = False) -> Iterator[History]:
    """The history of an adapter, with nobody else publishing, deciding or moving; a move that was cut off is completed.

    Args:
        folder: REGISTRY/<name>.
        moved_by_hand: what is to be recorded may be that the pointer was changed by hand.
    Raises:
        UserError: the history is damaged, the pointer is not what it says, or the registry cannot be written.
    """
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(f".{folder.name}", folder=folder.parent):
            history = History(folder, by)
            if not history.entries:
                _open(history)
            last = next((entry for entry in reversed(history.entries) if entry.what in ("opened", "move")), None)
            there, said = pointer(folder), history.champion
            if there != said:
                if last and there in ("", last.champion):
                    point(folder, said)
                elif not moved_by_hand:
                    raise UserError(
                        f"{folder / POINTER} points to {there}, and {HISTORY} says {said or 'that none is in use'}: it "
                        f"was changed by hand. Record what you want: qlora-flow adapters promote {folder.name}@VERSION."
                    )
            yield history


def _open(history: History) -> None:
    """Begin a history. Versions from before there was one: the newest intact one is the first champion."""
    newest = _newest(history.folder)
    reason = "the newest intact version from before this history; it was not compared" if newest else "the first run"
    history.add("opened", version=newest, reason=reason)


def _newest(folder: Path) -> str:
    for version in reversed(versions(folder)):
        with contextlib.suppress(DamagedArtifact):
            check_folder(version)
            return version.name
    return ""


def begin(folder: Path, by: str) -> None:
    """Before a run: open a history where there is none, and raise UserError for what would keep it from deciding."""
    with held(folder, by) as history:
        if history.champion:
            intact(folder, history.champion)


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn a refusal of the file system into a sentence."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(f"The registry {folder} cannot be written ({error.strerror}): {error.filename}.") from error


def read(folder: Path) -> list[Entry]:
    """The history of an adapter, oldest first; empty where there is none.

    Raises:
        UserError: a line is damaged or missing.
    """
    entries = []
    for number, entry in enumerate(lines.read(folder / HISTORY, TypeAdapter(Entry))):
        if entry is None or entry.number != number:
            raise UserError(
                f"{folder / HISTORY} is damaged at entry {number}, so looks may be lost and nothing is decided. "
                f"Restore it from a copy, or begin anew: qlora-flow adapters renew {folder.name} --reason TEXT."
            )
        entries.append(entry)
    return entries


def pointer(folder: Path) -> str:
    """The version that the pointer names; empty where there is none, `?` where it names no version."""
    path = folder / POINTER
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
    if path.is_dir() and not path.is_symlink():
        raise UserError(f"{path} is a folder, and the pointer to the champion has that name; move it away.")
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
    """What an adapter is to be compared with: the champion, or what it was compared with before. None: the base.

    A run that is repeated so compares the same two, and reuses its scores and its decision. Nothing is written.

    Args:
        folder: REGISTRY/<name>.
        adapter: digest of its weights.
    Raises:
        UserError: the champion is missing or damaged, or the history is.
    """
    entries = read(folder)
    for entry in reversed(entries):
        if entry.what in ("look", "move") and entry.adapter == adapter:
            if not entry.champion:
                return None
            with contextlib.suppress(DamagedArtifact):
                return reference(folder / entry.champion, check_folder(folder / entry.champion))
    version = current(folder)
    return version if version and weights(folder, version.path.name) != adapter else None  # nothing: with itself


def current(folder: Path) -> ArtifactRef | None:
    """The version in use, with its checksums verified; None: there is none yet.

    Raises:
        UserError: it is missing or damaged, or the history is.
    """
    entries = read(folder)
    now = champion_of(entries) if entries else _newest(folder)
    return intact(folder, now) if now else None


def intact(folder: Path, version: str) -> ArtifactRef:
    """A version, with its checksums verified.

    Raises:
        UserError: it is missing or damaged, or its name is none of a version.
    """
    if not VERSION.fullmatch(version):
        raise UserError(f"{version!r} names no version of {folder.name}; a version is called v0001.")
    try:
        return reference(folder / version, check_folder(folder / version))
    except DamagedArtifact as error:
        others = [path.name for path in versions(folder) if path.name != version]
        raise UserError(
            f"{version} of {folder.name} is missing or damaged ({error}). Restore its folder"
            + (f", or put another in use: qlora-flow adapters promote {folder.name}@{others[-1]}." if others else ".")
        ) from error


def weights(folder: Path, version: str) -> str:
    """Digest of a version's weights; empty for the base."""
    return read_manifest(folder / version).identity.inputs.get("adapter", "") if version else ""


def person() -> str:
    """Who types a command."""
    with contextlib.suppress(OSError, KeyError):
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return f"user {os.getuid()}@{socket.gethostname()}"
