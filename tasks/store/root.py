"""Where the store is."""

import os
from pathlib import Path


def store_root() -> Path:
    """The folder that holds everything the flow keeps."""
    return Path(os.environ.get("QLORA_FLOW_STORE", ".qlora-flow")).absolute()


LITTLE_DISK = 20 << 30
"""Free bytes below which people are told: a base of 8B takes 16 GB."""
