"""Checkpoints that are whole or not there: written aside, sealed with a manifest, renamed into place."""

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from transformers import TrainerCallback

from tasks.model.device import Instant
from tasks.store.identity import digest_of, file_digest

MINUTES = 5.0  # between two checkpoints
now = time.monotonic
KEPT = 2
_MANIFEST = "manifest.json"
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


class _Manifest(BaseModel):
    """What a checkpoint holds: name → sha256 of every file but this one, and the digest of that and the step."""

    model_config = ConfigDict(strict=True, extra="forbid")

    files: dict[str, str] = Field(min_length=1)
    digest: str


def seal(written: Path, final: Path) -> None:
    """Publish the finished checkpoint folder `written` as `final` and drop all but the last `KEPT`."""
    digests = {file.name: file_digest(file) for file in sorted(written.iterdir())}
    manifest = _Manifest(files=digests, digest=digest_of([final.name, digests]))
    (written / _MANIFEST).write_text(manifest.model_dump_json(indent=1))
    for file in written.iterdir():
        _sync(file)
    _remove(final)
    written.rename(final)
    _sync(final.parent)
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


def _trouble(path: Path) -> str:
    """What keeps a checkpoint from being used; nothing is loaded that its manifest does not list."""
    try:
        manifest = _Manifest.model_validate_json((path / _MANIFEST).read_bytes())
        if manifest.digest != digest_of([path.name, manifest.files]):
            return f"{_MANIFEST} is not as it was written"
        there = {file.name for file in path.iterdir()} - {_MANIFEST}
        if odd := sorted(there ^ manifest.files.keys()):
            return f"{odd[0]!r} is {'not among its files' if odd[0] in there else 'missing'}"
        for name, digest in manifest.files.items():
            if not (path / name).is_file() or file_digest(path / name) != digest:
                return f"{name} is not as it was written"
        return ""
    except (OSError, ValueError) as error:  # pydantic's too
        return f"it cannot be read ({type(error).__name__})"


def _remove(path: Path) -> None:
    """A folder, or what else has its name; several processes may do so at the same time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
