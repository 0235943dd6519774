"""Where the store is, and paths that people write."""

import os
from pathlib import Path

from tasks.errors import UserError


def store_root() -> Path:
    """The folder of the store."""
    return at_home(os.environ.get("QLORA_FLOW_STORE") or ".qlora-flow", "QLORA_FLOW_STORE").absolute()


def at_home(path: str | Path, field: str) -> Path:
    """A path that may begin with ~. Raises UserError, which names the field, if no file can have this path."""
    if why := impossible(path):
        raise UserError(f"{field}: {str(path)[:100]!r} is no path: {why}.")
    return expanded(path)


def expanded(path: str | Path) -> Path:
    """A path that may begin with ~. That of an unknown user stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  # Path.expanduser raises for an unknown user


def impossible(path: str | Path) -> str:
    """Why no file or folder of this machine can have a path; empty if one can."""
    whole = os.path.expanduser(path)  # noqa: PTH111  # as text, because Path makes "." of an empty one
    size = [len(part.encode("utf-8", "surrogatepass")) for part in (whole, *whole.split("/"))]
    if not whole.strip():
        return "it is empty"
    if "\0" in whole:
        return "it holds NUL"
    if size[0] > LONGEST_PATH or max(size[1:]) > LONGEST_NAME:
        return f"it takes {LONGEST_PATH:,} bytes at most, and {LONGEST_NAME} in each of its names"
    if whole.startswith("~") and not os.path.lexists(whole):
        return f"there is no user {whole.partition('/')[0][1:]}; a name that begins with ~ is written ./~"
    return ""


def existing(folder: Path) -> Path:
    """The folder, or the closest of its parents that exists."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


LONGEST_PATH, LONGEST_NAME = 4095, 255
"""Bytes, as Linux limits them."""
LITTLE_DISK = 20 << 30
"""Free bytes below which a warning is given: a base of 8B takes 16 GB."""
