"""Checkpoints that are complete or absent: written aside, listed in a manifest, renamed into place."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tasks.store.artifact import check_folder, move_into_place, write_manifest
from tasks.store.identity import Identity
from tasks.store.manifest import MANIFEST, DamagedArtifact

MINUTES = 5.0  # between two checkpoints
now = time.monotonic
KEPT = 2
_NAME = re.compile("checkpoint-[1-9][0-9]{0,17}")


class Schedule:
    """Checkpoints by the clock, and every `steps` steps where that is not 0.

    Saving is a barrier, and clocks differ: `due` is what all processes have agreed on.
    """

    def __init__(self) -> None:
        self.steps = 0
        self.due = False
        self.saved = now()

    def late(self) -> bool:
        """Whether the last checkpoint is too old by this process's clock."""
        return now() - self.saved >= 60 * MINUTES

    def save_after(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step`; the clock starts again if so."""
        save = self.due or bool(self.steps and step % self.steps == 0)
        if save:
            self.saved = now()
        return save


def seal(written: Path, final: Path) -> None:
    """Publish the finished checkpoint folder `written` as `final`, and remove all but the last `KEPT`."""
    write_manifest(_identity(final), written)
    move_into_place(written, final)
    for old in _newest_first(final.parent)[KEPT:]:
        _remove(old)


def last_valid(folder: Path, log: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint that holds exactly the files that were written; None when there is none.

    Removes damaged ones, which must not count among the `KEPT`, and what a killed attempt was writing.

    Args:
        log: told of each that is damaged.
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


def _newest_first(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def _identity(path: Path) -> Identity:
    return Identity(stage="checkpoint", config={"name": path.name})


def _damage(path: Path) -> str:
    """Why a checkpoint cannot be used, or an empty string. A file that the manifest does not list is damage too."""
    try:
        manifest = check_folder(path)
        there = {file.name for file in path.iterdir()} - {MANIFEST}
    except (DamagedArtifact, OSError) as error:
        return str(error)
    if manifest.key != _identity(path).key:
        return f"{MANIFEST} is that of another checkpoint"
    odd = sorted(there - manifest.files.keys())
    return f"{odd[0]!r} is not among its files" if odd else ""


def _remove(path: Path) -> None:
    """Remove a folder, or a file or link of that name; several processes may do so at the same time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
