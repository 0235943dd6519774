"""Files that several runs append to. Each line has its own checksum."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

T = TypeVar("T")


def append(file: Path, value: Any) -> None:
    """Append a line in one write, so that lines of concurrent processes do not mix."""
    text = json.dumps(value)
    with file.open("a") as lines:
        lines.write(f"\n{_checksum(text.encode())} {text}\n")  # the first newline ends what an interrupted write left


def read(file: Path, kind: TypeAdapter[T]) -> Iterator[T | None]:
    """The value of each line; None for a line that is damaged or of another type."""
    for line in file.read_bytes().splitlines() if file.exists() else ():
        checksum, _, text = line.partition(b" ")
        try:
            if line:
                yield kind.validate_json(text, strict=True) if checksum.decode() == _checksum(text) else None
        except ValueError:
            yield None


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
