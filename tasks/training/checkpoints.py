"""Checkpoints that are whole or not there: written aside, sealed with a manifest, renamed into place."""

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tasks.model.device import Instant
from tasks.store.artifact import check_folder, move_into_place, write_manifest
from tasks.store.identity import Identity
from tasks.store.manifest import MANIFEST, DamagedArtifact

MINUTES = 5.0  # between two checkpoints
now = time.monotonic
KEPT = 2
_NAME = re.compile("checkpoint-[1-9][0-9]{0,17}")


class StepEnd(TrainerCallback):
    """Checkpoints by the clock and by steps, for a `PackedTrainer`.

    Saving is a barrier, and clocks differ: `due` is what all processes have agreed on.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.due = False
        self.saved = now()

    def late(self) -> bool:
        """Whether the last checkpoint is too old by this process's clock."""
        return now() - self.saved >= 60 * MINUTES

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.began = Instant(args.device)
        self.saved = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        every = self.trainer.checkpoint_steps
        if (self.due or (every and state.global_step % every == 0)) and state.global_step < state.max_steps:
            self.saved = now()
            control.should_save = True


def seal(written: Path, final: Path) -> None:
    """Publish the finished checkpoint folder `written` as `final` and drop all but the last `KEPT`."""
    write_manifest(_identity(final), written)
    move_into_place(written, final)
    for old in _newest_first(final.parent)[KEPT:]:
        _remove(old)


def last_valid(folder: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint that holds the files that were written, and no other; None when there is none.

    Damaged ones are removed on the way: they must not count among the `KEPT`. So is what a killed attempt was writing.

    Args:
        say: told of each that is damaged.
    """
    for path in folder.glob(".writing-*"):
        _remove(path)
    for path in _newest_first(folder):
        if trouble := _trouble(path):
            say(f"{path.name} is damaged and removed: {trouble}")
            _remove(path)
        else:
            return path
    return None


def _newest_first(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name))
    return sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def _identity(path: Path) -> Identity:
    return Identity(stage="checkpoint", config={"name": path.name})


def _trouble(path: Path) -> str:
    """What keeps a checkpoint from being used; nothing is loaded that its manifest does not list."""
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
    """A folder, or what else has its name; several processes may do so at the same time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
