"""A folder of numbered versions: REGISTRY/<name>/v0001/, each whole, checksummed and never changed again.

adapter_model.safetensors, adapter_config.json   what PEFT loads: PeftModel.from_pretrained(base, FOLDER)
README.md                                        the model card
manifest.json                                    sha256 of every file, and the identity it was made from
SHA256SUMS                                       the same for `sha256sum -c`
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.store.artifact import (
    ArtifactRef,
    DamagedArtifact,
    check_folder,
    locked,
    read_manifest,
    reference,
    store_root,
    write_folder,
)
from tasks.store.identity import Identity

VERSION = re.compile(r"v(\d{4,})")
NOTED = "registries"
"""File in the store: a registry outside it a line."""


def versions(folder: Path) -> list[Path]:
    """The versions of one adapter, oldest first."""
    found = [p for p in folder.glob("v*") if VERSION.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.name[1:]))


def registries() -> list[Path]:
    """Every registry that versions made in this store went to."""
    noted = store_root() / NOTED
    return [store_root() / name for name in ["registry", *(noted.read_text().splitlines() if noted.exists() else [])]]


def _note(registry: Path) -> None:
    if registry not in registries():
        with (store_root() / NOTED).open("a") as file:
            file.write(f"{registry}\n")


def add_version(
    identity: Identity,
    folder: Path,
    write: Callable[[Path, str], dict[str, Any]],
    log: Callable[[str], None] = lambda line: None,
) -> ArtifactRef:
    """Put the next version into a registry folder, or return the intact one made of the same things.

    Args:
        write: fills an empty folder for the version of the given name and returns what to note.
    """
    store_root().mkdir(parents=True, exist_ok=True)
    _note(folder.parent)  # before there is a version whose origins could be cleaned away
    with locked(f".{folder.name}", folder=folder.parent):  # there, since other stores may publish to it as well
        there = versions(folder)
        for version in reversed(there):
            try:
                if read_manifest(version)["key"] == identity.key:
                    return reference(version, check_folder(version))
            except DamagedArtifact as error:
                log(f"{version.name} is damaged and left as it is: {error}")
        name = f"v{int(there[-1].name[1:]) + 1 if there else 1:04d}"
        return write_folder(identity, folder / name, lambda aside: write(aside, name))
