"""Checkpoints that are complete or absent: written to a hidden folder, listed in a manifest, renamed into place.

The last one is also in the remote store, for a successor on another machine.
"""

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tasks.errors import UserError
from tasks.store.artifact import check_folder, fetched, move_into_place, write_manifest
from tasks.store.identity import Identity
from tasks.store.manifest import MANIFEST, DamagedArtifact, read_manifest
from tasks.store.remote import Remote

MINUTES = 5.0  # between two checkpoints
now = time.monotonic
KEPT = 2
POLL_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 300.0  # while the remote store does not answer
_NAME = re.compile("checkpoint-[1-9][0-9]{0,17}")


class Schedule:
    """Checkpoints by time, and every `steps` steps if that is not 0.

    All processes save together and their clocks differ, so they agree on `due`.
    """

    steps, due = 0, False

    def __init__(self) -> None:
        self.saved = now()

    def late(self) -> bool:
        """Whether a checkpoint is due by this process's clock."""
        return now() - self.saved >= 60 * MINUTES

    def save_after(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step`. If so, the clock starts again."""
        save = self.due or bool(self.steps and step % self.steps == 0)
        if save:
            self.saved = now()
        return save


def seal(written: Path, final: Path) -> None:
    """Publish the finished checkpoint folder `written` as `final`, and remove all but the last `KEPT`."""
    write_manifest(_identity(final.name), written)
    move_into_place(written, final)
    for old in _newest_first(final.parent)[KEPT:]:
        _remove(old)


def last_valid(folder: Path, log: Callable[[str], None] = print) -> Path | None:
    """The newest intact checkpoint; None if there is none.

    Removes damaged checkpoints, which must not count among the `KEPT`, and what a killed attempt was writing.
    """
    for path in folder.glob(".writing-*"):
        _remove(path)
    for path in _newest_first(folder):
        try:
            manifest = check_folder(path)
            if manifest.key != _identity(path.name).key:
                raise DamagedArtifact(f"{MANIFEST} belongs to another checkpoint")
            if odd := sorted({file.name for file in path.iterdir()} - {MANIFEST, *manifest.files}):
                raise DamagedArtifact(f"the manifest does not list {odd[0]!r}")
            return path
        except (DamagedArtifact, OSError) as error:
            log(f"{path.name} is damaged and removed: {error}")
            _remove(path)
    return None


@contextlib.contextmanager
def mirrored(folder: Path, log: Callable[[str], None], warn: Callable[[str], None]) -> Iterator[None]:
    """Fetch the remote store's last checkpoint where it is newer, and copy each new one there while the body runs.

    Whatever goes wrong with the remote store is a warning: training needs none. `folder` is called as the stage's key.
    """
    if (remote := Remote.configured()) is None:
        yield
        return
    place = remote.checkpoints(folder.name)
    try:
        _fetch_newer(place, folder, log)
    except (OSError, UserError) as error:
        warn(f"no checkpoint is fetched from {place.url}: {error}")
    over, there = threading.Event(), ""

    def copy() -> bool:
        nonlocal there
        newest = next(iter(_newest_first(folder)), None)
        if newest is None or newest.name == there:
            return True
        try:
            manifest = read_manifest(newest)
            if place.push(manifest, newest, replace=True) and not there:
                log(f"{newest.name} is in {place.url} now, and later ones will be")
            place.keep_only(manifest)
            there = newest.name
        except (OSError, UserError, DamagedArtifact) as error:
            if newest.exists():  # else it made room for later ones
                warn(f"{newest.name} is not copied to {place.url} for now: {error}")
                return False
        return True

    def copy_each() -> None:
        pause = POLL_SECONDS
        while not over.wait(pause):
            pause = POLL_SECONDS if copy() else min(2 * pause, LONGEST_PAUSE_SECONDS)

    copies = threading.Thread(target=copy_each, daemon=True)
    copies.start()
    try:
        yield
    except BaseException:
        over.set()
        copies.join()
        copy()  # the last one of a process that was asked to end
        raise
    over.set()
    copies.join()


def _fetch_newer(place: Remote, folder: Path, log: Callable[[str], None]) -> None:
    there = []
    for key in place.listed():
        if manifest := place.manifest(key, log):
            path = folder / str(manifest.identity.config.get("name"))
            if _NAME.fullmatch(path.name) and _identity(path.name).key == key:
                there.append(path)
            else:
                log(f"{key} is not fetched: it is no checkpoint of this version of qlora-flow")
    local = last_valid(folder, log)
    for path in sorted(there, key=_step, reverse=True):
        if (local and _step(path) <= _step(local)) or fetched(place, path, _identity(path.name).key, log):
            return


def _newest_first(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name))
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def _identity(name: str) -> Identity:
    return Identity(stage="checkpoint", config={"name": name})


def _remove(path: Path) -> None:
    """Remove a folder, or a file or link of that name. Several processes may do this at the same time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
