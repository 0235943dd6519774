"""Files of the store that many runs append to: a line each, with a checksum of its own."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def append(file: Path, value: Any) -> None:
    """Add a line with one write, which processes side by side cannot tear apart."""
    text = json.dumps(value)
    with file.open("a") as lines:
        lines.write(f"\n{_checksum(text.encode())} {text}\n")  # what an interrupted write left ends here


def read(file: Path, kind: TypeAdapter[T]) -> Iterator[T | None]:
    """The values of a file's lines, None for one that is damaged or of another type."""
    for line in file.read_bytes().splitlines() if file.exists() else ():
        checksum, _, text = line.partition(b" ")
        try:
            if line:
                yield kind.validate_json(text, strict=True) if checksum.decode() == _checksum(text) else None
        except ValueError:
            yield None


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
