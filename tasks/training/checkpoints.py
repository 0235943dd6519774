"""Checkpoints that are whole or not there: written aside, sealed with a manifest, renamed into place."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tasks.training.device import Instant

MINUTES = 5.0  # between two checkpoints
now = time.monotonic
KEPT = 2
_MANIFEST = "manifest.json"


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
    digests = {file.name: _digest(file) for file in sorted(written.iterdir())}
    (written / _MANIFEST).write_text(json.dumps(digests, indent=1))
    for file in written.iterdir():
        _sync(file)
    if final.exists():
        shutil.rmtree(final)
    written.rename(final)
    _sync(final.parent)
    for old in _newest_first(final.parent)[KEPT:]:
        shutil.rmtree(old)


def last_valid(folder: Path) -> Path | None:
    """The newest checkpoint whose every file is as it was written; None when there is none.

    Damaged ones are removed on the way: they must not count among the `KEPT`. So is what a killed attempt was writing.
    """
    for path in folder.glob(".writing-*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in _newest_first(folder):
        if _valid(path):
            return path
        shutil.rmtree(path, ignore_errors=True)
    return None


def _newest_first(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit())
    return sorted(found, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def _valid(path: Path) -> bool:
    try:
        digests = json.loads((path / _MANIFEST).read_text())
        return all(_digest(path / name) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
