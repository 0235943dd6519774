"""What decides the result of a stage. Two equal identities give the same key on every machine and day."""

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class Parts(BaseModel):
    """An identity with code and libraries resolved to digests and versions: what the key is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    stage: str
    inputs: dict[str, str]
    config: dict[str, Any]
    code: dict[str, str]
    libraries: dict[str, str]

    @property
    def key(self) -> str:
        """`<stage>-<32 hex digits>`."""
        return f"{self.stage}-{digest_of(self.model_dump())[:32]}"


class Identity(BaseModel):
    """Everything that decides what a stage writes.

    Args:
        stage: name of the stage.
        inputs: name → content digest of everything it reads.
        config: name → value of every field it reads, and no other.
        code: packages or modules whose source files decide the result.
        libraries: distributions whose version shapes the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    inputs: dict[str, str] = {}
    config: dict[str, Any] = {}
    code: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()

    def parts(self) -> Parts:
        return Parts(
            stage=self.stage,
            inputs=self.inputs,
            config=self.config,
            code={name: source_digest(name) for name in self.code},
            libraries={name: importlib.metadata.version(name) for name in self.libraries},
        )

    @property
    def key(self) -> str:
        """`<stage>-<32 hex digits>`."""
        return self.parts().key


def digest_of(value: Any) -> str:
    """sha256 of the canonical JSON of a value (sorted names, no NaN)."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def source_digest(name: str) -> str:
    """Digest of a module's file, or of every file below a package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    origin = Path(spec.origin)
    return files_digest(origin.parent if origin.name == "__init__.py" else origin)


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
