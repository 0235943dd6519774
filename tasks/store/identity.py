"""The identity of a result: everything that decides it. Equal identities have the same key on every machine."""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Identity(BaseModel):
    """Everything that decides what a stage writes. The key is made of it.

    Args:
        stage: name of the stage.
        inputs: name → content digest of everything it reads.
        config: name → value of every field it reads, and no other.
        version: of the stage's code: raised when the same inputs can give another result.
        libraries: distribution → version (`installed`), of those that shape the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    stage: str
    inputs: dict[str, str] = {}
    config: dict[str, Any] = {}
    version: int = Field(1, ge=1)
    libraries: dict[str, str] = {}

    @property
    def key(self) -> str:
        """`<stage>-<32 hex digits>`."""
        return f"{self.stage}-{digest_of(self.model_dump())[:32]}"


def installed(*names: str) -> dict[str, str]:
    """Distribution → its version here."""
    return {name: importlib.metadata.version(name) for name in names}


def digest_of(value: Any) -> str:
    """sha256 of the canonical JSON of a value (sorted names, no NaN)."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def files_digest(path: Path) -> str:
    """Digest of a file, or of the names and contents of all files below a folder, compiled ones left out."""
    if path.is_file():
        return file_digest(path)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix not in {".pyc", ".pyo"})
    return digest_of({p.relative_to(path).as_posix(): file_digest(p) for p in files})


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
