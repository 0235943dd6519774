"""The manifest of a finished folder: its files, its identity, its facts, and a checksum of the manifest itself.

Every manifest, from the disk or a remote store, is read into this one model. A manifest that does not fit the model, or
differs in a byte from what was written, is damaged.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.config import TRUSTED, Section
from tasks.store.checked import content_digest
from tasks.store.facts import Facts
from tasks.store.identity import Identity, digest_of

MANIFEST = "manifest.json"
LARGEST = 64 << 20
"""Bytes; a larger manifest is not read."""
LONGEST_NAME = 250
"""Bytes of a file's path in its folder; file systems take 255 for each part."""


class DamagedArtifact(RuntimeError):
    """A folder is missing, incomplete or changed; the message says which file."""


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or not name.isprintable():
        raise ValueError("a file's name is a relative path without ..")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"a file's name is longer than {LONGEST_NAME} bytes")
    if name in (".", MANIFEST):
        raise ValueError("no name of a file in the folder")
    return name


FileName = Annotated[str, AfterValidator(_inside)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
F = TypeVar("F", bound=Facts)
C = TypeVar("C", bound=Section)
_CONFIG = ConfigDict(frozen=True, extra="forbid", strict=True)


class StoredFile(BaseModel):
    """Size in bytes, and sha256 of the content."""

    model_config = _CONFIG

    size: int = Field(ge=0)
    sha256: Digest


class Manifest(BaseModel):
    """The content of manifest.json.

    Args:
        format: of the manifest; a folder with another one counts as damaged.
        key: `<stage>-<32 hex digits>`, made from `identity`.
        identity: what decided the content.
        created: UTC.
        seconds: how long the stage took.
        digest: sha256 over names and contents of the files.
        files: path relative to the folder → size and sha256.
        info: the stage's facts; read them by `facts`.
        checksum: sha256 of all the rest.
    """

    model_config = _CONFIG

    format: Literal[3]
    key: str
    identity: Identity
    created: str = Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
    seconds: float = Field(ge=0)
    digest: Digest
    files: dict[FileName, StoredFile]
    info: dict[str, Any]
    checksum: str = ""

    @model_validator(mode="after")
    def _agrees(self) -> "Manifest":
        datetime.fromisoformat(self.created)
        if self.key != self.identity.key:
            raise ValueError("its key is not that of its identity")
        if self.digest != files_digest(self.files):
            raise ValueError("its digest is not that of its files")
        if any(parent.as_posix() in self.files for name in self.files for parent in PurePosixPath(name).parents):
            raise ValueError("a file is a folder as well")
        if self.info.get("rows", 0).__class__ is not int:
            raise ValueError("info.rows is no whole number")
        return self

    @classmethod
    def parse(cls, raw: bytes) -> "Manifest":
        """Raises ValueError if the bytes are no manifest, or have changed since they were written."""
        if len(raw) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MiB")
        try:
            manifest = cls.model_validate_json(raw)
        except ValidationError as error:
            raise ValueError(_first(error)) from None
        if manifest.encoded() != raw:
            raise ValueError("its checksum says that it has changed")
        return manifest

    def encoded(self) -> bytes:
        """The bytes of manifest.json, with the checksum."""
        content = self.model_dump(exclude={"checksum"})
        text = json.dumps(content, ensure_ascii=False)
        content["checksum"] = hashlib.sha256(text.encode()).hexdigest()
        return json.dumps(content, indent=1, ensure_ascii=False).encode()

    def facts(self, kind: type[F]) -> F:
        """The facts that the stage noted. Raises DamagedArtifact if another version of qlora-flow wrote other ones."""
        try:
            return kind.model_validate(self.info)
        except ValidationError as error:
            raise DamagedArtifact(
                f"{self.key} was noted by another version of qlora-flow ({kind.__name__}: {_first(error)}); remove its "
                "folder, and its stage runs again"
            ) from None

    def fields(self, group: type[C]) -> C:
        """The configuration that the stage read. Fields that it does not read have their defaults."""
        given = {name: value for name, value in self.identity.config.items() if name in group.model_fields}
        return group.model_validate(given, context=TRUSTED)

    @property
    def rows(self) -> int:
        """Rows in the main table, 0 where there is none."""
        return self.info.get("rows", 0)

    def part(self, folder: str) -> str:
        """Digest of the files below one of its folders, for a stage that reads only these."""
        return files_digest({n: f for n, f in self.files.items() if n.startswith(folder + "/")})


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["loc"] == ("format",):
        return (
            "another version of qlora-flow wrote it, and this one cannot read it; a stage runs again, and a "
            "published version can be moved out of the registry"
        )
    return f"{'.'.join(map(str, first['loc']))} {first['msg']}".strip()


def read_manifest(folder: Path) -> Manifest:
    """Raises DamagedArtifact if a folder's manifest is missing or damaged, OSError (transient) if the disk fails."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return Manifest.parse(file.read(LARGEST + 1))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError) as error:
        raise DamagedArtifact(f"{folder} has no readable {MANIFEST}: {error}") from error


def readable(folders: Iterable[Path]) -> dict[Path, Manifest]:
    """Folder → manifest, of the folders whose manifest is intact."""
    found = {}
    for folder in folders:
        with contextlib.suppress(DamagedArtifact, OSError):
            found[folder] = read_manifest(folder)
    return found


def latest(folders: Iterable[Path]) -> Manifest | None:
    """The newest readable manifest among some folders."""
    return max(readable(folders).values(), key=lambda manifest: manifest.created, default=None)


def describe_files(folder: Path) -> dict[str, StoredFile]:
    """Name → size and sha256 of every file below a folder, the manifest itself left out."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return {
        p.relative_to(folder).as_posix(): StoredFile(size=p.stat().st_size, sha256=content_digest(p)) for p in files
    }


def files_digest(files: dict[str, StoredFile]) -> str:
    return digest_of({name: entry.sha256 for name, entry in files.items()})
