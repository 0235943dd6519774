"""Environment variables that a command sets before libraries read them, and the place of the store."""

import os
from pathlib import Path

from tasks.errors import UserError
from tasks.store.root import store_root


def check_store() -> None:
    """Raises UserError when the store's place is taken by a file."""
    there = next(path for path in (store_root(), *store_root().parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"The store {store_root()} cannot be used: {there} is a file, and a store is a folder.")


def homes_in_store() -> None:
    """Where there is no home to write to, what libraries keep there is kept in the store."""
    for name, usual in (("PREFECT_HOME", "~/.prefect"), ("HF_HOME", "~/.cache/huggingface")):
        if name not in os.environ and not _can_write(Path(usual)):
            instead = store_root() / name.lower()
            instead.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(instead)


def local_settings() -> None:
    """Prefect as a local run needs it; what the user has set stays. Must come before Prefect is imported."""
    os.environ.setdefault("PREFECT_RESULTS_LOCAL_STORAGE_PATH", str(store_root() / "results"))
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_SERVER_LEVEL", "ERROR")
    os.environ.setdefault("DO_NOT_TRACK", "1")


def _can_write(folder: Path) -> bool:
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody knows where this user's home is
        return False
    return os.access(folder, os.W_OK) or (folder / "hub").is_dir()  # models that somebody put there stay in reach
