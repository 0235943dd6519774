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

    def __init__(self) -> None:
        self.steps = 0
        self.due = False
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

    Args:
        log: receives a line for each damaged checkpoint.
    """
    for path in folder.glob(".writing-*"):
        _remove(path)
    for path in _newest_first(folder):
        if damage := _damage(path):
            log(f"{path.name} is damaged and removed: {damage}")
            _remove(path)
        else:
            return path
    return None


@contextlib.contextmanager
def mirrored(folder: Path, log: Callable[[str], None], warn: Callable[[str], None]) -> Iterator[None]:
    """Fetch the remote store's last checkpoint where it is newer, and copy each new one there while the body runs.

    Whatever goes wrong with the remote store is a warning: training needs none.

    Args:
        folder: of the checkpoints, called as the stage's key.
    """
    if (remote := Remote.configured()) is None:
        yield
        return
    place = remote.checkpoints(folder.name)
    try:
        _fetch_newer(place, folder, log)
    except (OSError, UserError) as error:
        warn(f"no checkpoint is fetched from {place.url}: {error}")
    copies = _Copies(place, folder, log, warn)
    copies.start()
    try:
        yield
    except BaseException:
        copies.end(last=True)  # of a process that was asked to end
        raise
    copies.end(last=False)


def _fetch_newer(place: Remote, folder: Path, log: Callable[[str], None]) -> None:
    local = last_valid(folder, log)
    there = []
    for key in place.listed():
        if manifest := place.manifest(key, log):
            name = str(manifest.identity.config.get("name"))
            if _NAME.fullmatch(name) and _key(name) == key:
                there.append(name)
            else:
                log(f"{key} is not fetched: it is no checkpoint of this version of qlora-flow")
    for name in sorted(there, key=_step, reverse=True):
        if (local and _step(name) <= _step(local.name)) or fetched(place, folder / name, _key(name), log):
            return


class _Copies(threading.Thread):
    """Copies the newest checkpoint to the remote store; training goes on meanwhile, in a process of its own."""

    def __init__(self, place: Remote, folder: Path, log: Callable[[str], None], warn: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self.place, self.folder, self.log, self.warn = place, folder, log, warn
        self._over, self._last, self._there = threading.Event(), False, ""

    def end(self, last: bool) -> None:
        """Finish what is being copied, and copy the newest one if `last`."""
        self._last = last
        self._over.set()
        self.join()

    def run(self) -> None:
        pause = POLL_SECONDS
        while not self._over.wait(pause):
            pause = POLL_SECONDS if self._copy() else min(2 * pause, LONGEST_PAUSE_SECONDS)
        if self._last:
            self._copy()

    def _copy(self) -> bool:
        newest = next(iter(_newest_first(self.folder)), None)
        if newest is None or newest.name == self._there:
            return True
        try:
            manifest = read_manifest(newest)
            if self.place.push(manifest, newest, replace=True) and not self._there:
                self.log(f"{newest.name} is in {self.place.url} now, and later ones will be")
            self.place.keep_only(manifest)
        except (OSError, UserError, DamagedArtifact) as error:
            if newest.exists():  # else it made room for later ones
                self.warn(f"{newest.name} is not copied to {self.place.url} for now: {error}")
                return False
        else:
            self._there = newest.name
        return True


def _newest_first(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: _step(path.name), reverse=True)


def _step(name: str) -> int:
    return int(name.removeprefix("checkpoint-"))


def _identity(name: str) -> Identity:
    return Identity(stage="checkpoint", config={"name": name})


def _key(name: str) -> str:
    return _identity(name).key


def _damage(path: Path) -> str:
    """Why a checkpoint is damaged, or an empty string. A file that the manifest does not list is damage, too."""
    try:
        manifest = check_folder(path)
        there = {file.name for file in path.iterdir()} - {MANIFEST}
    except (DamagedArtifact, OSError) as error:
        return str(error)
    if manifest.key != _key(path.name):
        return f"{MANIFEST} belongs to another checkpoint"
    odd = sorted(there - manifest.files.keys())
    return f"the manifest does not list {odd[0]!r}" if odd else ""


def _remove(path: Path) -> None:
    """Remove a folder, or a file or link of that name. Several processes may do this at the same time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
