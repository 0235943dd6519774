"""Where the store is."""

import os
from pathlib import Path


def store_root() -> Path:
    """The folder of the store."""
    return Path(os.environ.get("QLORA_FLOW_STORE", ".qlora-flow")).absolute()


LITTLE_DISK = 20 << 30
"""Free bytes below which a warning is given: a base of 8B takes 16 GB."""
