"""What decides the result of a stage. Two equal identities give the same key on every machine and day."""

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


class Parts(BaseModel):
    """An identity with the versions of its libraries: what the key is made of.

    Args:
        version: of the stage; 0 in manifests of formats 1 and 2, whose `code` has digests of source files instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    stage: str
    inputs: dict[str, str]
    config: dict[str, Any]
    version: int = Field(0, ge=0)
    code: dict[str, str] = {}
    libraries: dict[str, str]

    @model_serializer(mode="wrap")
    def _one_of_two(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = written(self)
        del content["code" if self.version else "version"]
        return content

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
        version: of the stage's code: a number that is raised when the same inputs can give another result.
        libraries: distributions whose version shapes the result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    inputs: dict[str, str] = {}
    config: dict[str, Any] = {}
    version: int = Field(1, ge=1)
    libraries: tuple[str, ...] = ()

    def parts(self) -> Parts:
        return Parts(
            stage=self.stage,
            inputs=self.inputs,
            config=self.config,
            version=self.version,
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
