"""Environment variables that a command sets before libraries read them, and a check of the store's folder."""

import os
from pathlib import Path

from tasks.errors import UserError
from tasks.store.root import existing, store_root


def check_store() -> None:
    """Raises UserError if the store's path or a parent of it is a file."""
    if not (there := existing(store_root())).is_dir():
        raise UserError(f"The store {store_root()} cannot be used: {there} is a file, and a store is a folder.")


def name_a_home() -> None:
    """Prefect cannot be imported without the name of a home directory; the directory itself need not be usable."""
    # HOME is not set, and the user id has no name, as in some containers
    if os.path.expanduser("~") == "~":  # noqa: PTH111
        os.environ["HOME"] = "/"


def homes_in_store() -> None:
    """Without a writable home, libraries keep their files in the store."""
    for name, usual in (("PREFECT_HOME", "~/.prefect"), ("HF_HOME", "~/.cache/huggingface")):
        if not os.environ.get(name):
            os.environ.pop(name, None)  # an empty one would be the working directory
            if _can_write(Path(usual)):
                continue
            instead = store_root() / name.lower()
            instead.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(instead)


def local_settings() -> None:
    """Prefect's settings for a local run; the user's settings stay. Call it before Prefect is imported."""
    if not os.environ.get("PREFECT_RESULTS_LOCAL_STORAGE_PATH"):
        os.environ["PREFECT_RESULTS_LOCAL_STORAGE_PATH"] = str(store_root() / "results")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "ERROR")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def _can_write(folder: Path) -> bool:
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK) or (folder / "hub").is_dir()  # read-only, but with models
