"""Digests of files that were read before. A file with the same inode, size and times is not read again.

    STORE/checked.jsonl     one line a file: device and inode, size, mtime, ctime, sha256

A bit that flips on the disk changes none of these; QLORA_FLOW_VERIFY=full (`qlora-flow run --verify full`) reads all.
"""

import contextlib
import os
import time
from pathlib import Path

from pydantic import TypeAdapter

from tasks.store import lines
from tasks.store.identity import file_digest
from tasks.store.root import store_root

WORTH = 1 << 20
"""Bytes. Digests of smaller files are not saved, since reading them costs little."""
SETTLED_SECONDS = 2.0
"""A file that changes twice in one clock tick looks unchanged, so digests of files younger than this are not saved."""

LINE = TypeAdapter(tuple[str, int, int, int, str])
_seen: dict[str, tuple[int, int, int, str]] = {}
_loaded: set[Path] = set()


def content_digest(file: Path) -> str:
    """sha256 of a file; an untouched file is read once in a process, a large one once on this machine."""
    status = file.stat()
    which = f"{status.st_dev}:{status.st_ino}"  # a folder that is moved into place keeps it
    now = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    record = store_root() / "checked.jsonl"
    if record not in _loaded and os.environ.get("QLORA_FLOW_VERIFY") != "full":
        _loaded.add(record)
        with contextlib.suppress(OSError):  # another user's
            _seen.update((line[0], line[1:]) for line in lines.read(record, LINE) if line)
    if (known := _seen.get(which)) and known[:3] == now:
        return known[3]
    digest = file_digest(file)
    _seen[which] = (*now, digest)
    if status.st_size >= WORTH and time.time() - status.st_ctime > SETTLED_SECONDS:
        with contextlib.suppress(OSError):  # a full disk costs the shortcut, not the run
            lines.append(record, [which, *_seen[which]])
    return digest
