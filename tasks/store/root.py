"""Where the store is."""

import os
from pathlib import Path


def store_root() -> Path:
    """The folder of the store."""
    return at_home(os.environ.get("QLORA_FLOW_STORE") or ".qlora-flow").absolute()


def at_home(path: str | Path) -> Path:
    """A path that may begin with ~. That of an unknown user stays as it is, and is not found."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises instead


def existing(folder: Path) -> Path:
    """The folder, or the closest of its parents that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


LITTLE_DISK = 20 << 30
"""Free bytes below which a warning is given: a base of 8B takes 16 GB."""
