"""The registry: numbered versions REGISTRY/<name>/v0001/, each complete, with checksums, and never changed.

adapter_model.safetensors, adapter_config.json   what PEFT loads: PeftModel.from_pretrained(base, FOLDER)
README.md                                        the model card
manifest.json                                    sha256 of every file, and the identity it was made from
SHA256SUMS                                       the same for `sha256sum -c`

Its group can read a registry, whatever the umask is, because the user who serves adapters is often another one.
"""

import contextlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import TypeAdapter

from tasks.errors import UserError
from tasks.store import lines
from tasks.store.artifact import ArtifactRef, Input, check_folder, locked, reference, write_folder
from tasks.store.facts import Facts
from tasks.store.identity import Identity
from tasks.store.manifest import DamagedArtifact, read_manifest
from tasks.store.root import store_root

VERSION = re.compile(r"v([0-9]{4,})")
NOTED = "registries"
"""File in the store that names every registry outside it. `clean` keeps what their versions were made from."""


def versions(folder: Path) -> list[Path]:
    """The versions of one adapter, oldest first."""
    found = [p for p in folder.glob("v*") if VERSION.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.name[1:]))


def registries() -> list[Path]:
    """The store's registry, and the others that this store published to; UserError if the file NOTED is damaged."""
    noted = list(lines.read(store_root() / NOTED, TypeAdapter(str)))
    if None in noted:
        raise UserError(
            f"{store_root() / NOTED} is damaged: some registries that it notes cannot be read. Remove that file, "
            "publish once to each registry outside the store, which notes it again, and clean then."
        )
    return [store_root() / name for name in ["registry", *filter(None, noted)]]


def add_version(
    identity: Identity,
    folder: Path,
    write: Callable[[Path, str], Facts],
    log: Callable[[str], None] = lambda line: None,
    inputs: Iterable[Input] = (),
) -> ArtifactRef:
    """Add the next version to a registry folder, or return the intact version with the same identity.

    Args:
        write: fills an empty folder for the version of the given name and returns what to note.
        inputs: what `write` reads.
    """
    store_root().mkdir(parents=True, exist_ok=True)
    if folder.is_relative_to(store_root()):
        group_may(store_root(), 0o010)  # the group must pass through it to reach the registry
    noted = store_root() / NOTED  # written before the version, or `clean` could remove what it was made from
    if folder.parent != store_root() / "registry" and str(folder.parent) not in lines.read(noted, TypeAdapter(str)):
        lines.append(noted, str(folder.parent))
    with locked(f".{folder.name}", folder=folder.parent):  # the lock is there, because other stores may publish to it
        there = versions(folder)
        for version in reversed(there):
            try:
                if read_manifest(version).key == identity.key:
                    return reference(version, check_folder(version))
            except DamagedArtifact as error:
                log(f"{version.name} is damaged and left as it is: {error}")
        name = f"v{int(there[-1].name[1:]) + 1 if there else 1:04d}"

        def for_the_group(aside: Path) -> Facts:
            for path in (folder.parent, folder, aside):
                group_may(path, 0o050)
            return write(aside, name)

        return write_folder(identity, folder / name, for_the_group, inputs)


def group_may(folder: Path, bits: int) -> None:
    """Add permissions to a folder if this user owns it."""
    if (mode := folder.stat().st_mode & 0o7777) | bits != mode:
        with contextlib.suppress(PermissionError):
            folder.chmod(mode | bits)
