"""A finished stage is a folder with a manifest. It is complete or absent, and is checked before it is used.

    STORE/artifacts/<stage>-<key>/manifest.json + what the stage wrote (Parquet, adapter files)
    STORE/locks/<stage>-<key>.lock           held while one process computes the key; free when its holder dies
    STORE/work/<stage>-<key>/                checkpoints of a stage that is still computing
    STORE/checked.jsonl                      which large files need not be read again (checked.py)

The store is the folder that QLORA_FLOW_STORE names, else `.qlora-flow` in the working directory.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from tasks.store.checked import content_digest
from tasks.store.facts import Facts
from tasks.store.identity import Identity
from tasks.store.manifest import (
    MANIFEST,
    DamagedArtifact,
    F,
    Manifest,
    describe_files,
    files_digest,
    read_manifest,
)
from tasks.store.remote import Remote
from tasks.store.root import store_root


class ArtifactRef(BaseModel):
    """A reference that stages pass to each other: a name and a digest, never rows.

    Args:
        name: folder below the store's root, or an absolute path.
        digest: sha256 over the names and contents of its files.
        rows: in its main table, 0 where it has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    digest: str
    rows: int = 0

    @property
    def path(self) -> Path:
        return store_root() / self.name

    @property
    def manifest(self) -> Manifest:
        """Raises DamagedArtifact if the manifest is not the one that this reference was made from."""
        return self._same(read_manifest(self.path))

    def facts(self, kind: type[F]) -> F:
        return self.manifest.facts(kind)

    def part(self, folder: str) -> str:
        return self.manifest.part(folder)

    def verify(self) -> None:
        """Raises DamagedArtifact if a file differs from the manifest, or the manifest from this reference."""
        self._same(check_folder(self.path))

    def _same(self, manifest: Manifest) -> Manifest:
        if manifest.digest != self.digest:
            raise DamagedArtifact(f"{self.path} has changed since this result was recorded")
        return manifest


class Input(Protocol):
    """Something that a stage reads; `verify` raises DamagedArtifact if a file is missing or has changed."""

    def verify(self) -> None: ...


@contextlib.contextmanager
def intact(inputs: Iterable[Input]) -> Iterator[None]:
    """Verify inputs before and after the body reads them, also if it fails: no result is made from damaged ones."""
    inputs = list(inputs)

    def verify() -> None:
        for each in inputs:
            each.verify()

    verify()
    try:
        yield
    except Exception:
        verify()
        raise
    verify()


def check_folder(folder: Path) -> Manifest:
    """A folder's manifest. Raises DamagedArtifact naming the first file that differs from it; OSError is transient."""
    manifest = read_manifest(folder)
    for name, expected in manifest.files.items():
        file = folder / name
        try:
            size = file.stat().st_size
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedArtifact(f"{file} is missing") from error
        if size != expected.size:
            raise DamagedArtifact(f"{file} has {size} bytes instead of {expected.size}")
        if content_digest(file) != expected.sha256:
            raise DamagedArtifact(f"{file} has changed since it was written")
    return manifest


@contextlib.contextmanager
def locked(name: str, mode: int = fcntl.LOCK_EX, folder: Path | None = None) -> Iterator[None]:
    """Hold a file lock against other processes of this machine. The system frees it when its holder dies.

    Args:
        mode: as `fcntl.flock` takes it.
        folder: of the lock's file; None: `locks` in the store.
    Raises:
        BlockingIOError: another process holds the lock, and `mode` has LOCK_NB.
    """
    folder = folder or store_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("a+") as file:  # NFSv4 takes a shared lock where a file may be read
        fcntl.flock(file, mode)
        yield


def in_use() -> contextlib.AbstractContextManager[None]:
    """The shared lock that every run holds, so that `clean` removes nothing during a run."""
    return locked("store", fcntl.LOCK_SH)


_DAMAGED = "-damaged"  # ends the name of a damaged folder while its replacement moves into place
written_here: dict[str, float] = {}
"""Key → `time.monotonic()` of the results that this process computed. The summary calls them `ran`, others `reused`."""


def produce(
    identity: Identity,
    write: Callable[[Path], Facts],
    log: Callable[[str], None] = lambda line: None,
    inputs: Iterable[Input] = (),
) -> ArtifactRef:
    """Return the folder of an identity: the intact one in this store or the remote one, or else a new one from `write`.

    Args:
        write: fills an empty folder and returns its facts; `rows` is its main table's length.
        log: receives why an existing folder was not used, and transfers from and to the remote store.
        inputs: what `write` reads.
    Raises:
        DamagedArtifact: an input had changed before or after it was read; nothing was written.
    """
    key = identity.key
    folder = store_root() / "artifacts" / key
    remote = Remote.configured()

    def remove_checkpoints() -> None:
        if (checkpoints := work_folder(identity)).exists():
            if remote:
                remote.checkpoints(key).keep_only(None)
            shutil.rmtree(checkpoints, ignore_errors=True)

    with locked(key):
        manifest = _present(folder, identity, log) or (fetched(remote, folder, key, log) if remote else None)
        if manifest is None:
            try:
                manifest = write_folder(identity, folder, write, inputs).manifest
            except DamagedArtifact:
                remove_checkpoints()  # they may be made from damaged inputs
                raise
        if remote and remote.push(manifest, folder):
            log(f"{key} is in {remote.url} now")
        remove_checkpoints()
        return reference(folder, manifest)


def _present(folder: Path, identity: Identity, log: Callable[[str], None]) -> Manifest | None:
    if folder.exists():
        try:
            if (manifest := check_folder(folder)).key == identity.key:
                return manifest
            raise DamagedArtifact(f"{folder} has the manifest of {manifest.key}")
        except DamagedArtifact as error:
            log(f"{identity.stage} runs again: {error}")
    return None


def fetched(remote: Remote, folder: Path, key: str, log: Callable[[str], None]) -> Manifest | None:
    """Bring a result of the remote store into place; None where there is none, or a damaged one, as the log is told."""
    if (manifest := remote.manifest(key, log)) is None:
        return None
    try:
        with _aside(folder) as aside:
            remote.fetch(manifest, aside)
            (aside / MANIFEST).write_bytes(manifest.encoded())
    except DamagedArtifact as error:
        log(f"{folder.name} is not fetched: {error}")
        return None
    log(f"{folder.name} was fetched from {remote.url}")
    return manifest


def write_folder(
    identity: Identity, folder: Path, write: Callable[[Path], Facts], inputs: Iterable[Input] = ()
) -> ArtifactRef:
    """Fill a hidden folder, add its manifest, and move it into place. The caller holds a lock for the folder."""
    began = time.monotonic()
    with _aside(folder) as aside:
        with intact(inputs):
            facts = write(aside)
        manifest = write_manifest(identity, aside, facts, seconds=round(time.monotonic() - began, 3))
    written_here[identity.key] = time.monotonic()
    return reference(folder, manifest)


@contextlib.contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """A hidden empty folder that replaces `folder` on success and is removed on failure."""
    aside = folder.parent / f".{folder.name}"
    for left in (aside, folder.parent / f".{folder.name}{_DAMAGED}"):  # left by a process that was killed
        _remove(left)
    aside.mkdir(parents=True)
    try:
        yield aside
        move_into_place(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def discard(key: str) -> None:
    """Remove a result here and in the remote store, so that its stage runs again."""
    if remote := Remote.configured():
        remote.forget(key)
    with locked(key):
        shutil.rmtree(store_root() / "artifacts" / key, ignore_errors=True)


def work_folder(identity: Identity) -> Path:
    """Folder of a stage's checkpoints, for later attempts at the same identity; removed when the stage has finished."""
    return store_root() / "work" / identity.key


def write_manifest(identity: Identity, folder: Path, facts: Facts = Facts(), seconds: float = 0) -> Manifest:
    """Write the manifest of a folder that has all its files.

    Files get the permissions of their folder, which follow the umask; safetensors lets only the owner read.
    """
    (folder / MANIFEST).touch()
    mode = folder.stat().st_mode & 0o777
    for path in folder.rglob("*"):  # before the digests: it changes ctime, and every file would be read again
        wanted = mode if path.is_dir() else mode & 0o666
        if path.stat().st_mode & 0o777 != wanted:
            path.chmod(wanted)
    files = describe_files(folder)
    manifest = Manifest(
        format=3,
        key=identity.key,
        identity=identity,
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        seconds=seconds,
        digest=files_digest(files),
        files=files,
        info=json.loads(json.dumps(facts.model_dump(exclude_none=True))),  # as JSON gives it back
    )
    (folder / MANIFEST).write_bytes(manifest.encoded())
    return manifest


def _remove(path: Path) -> None:
    """Remove a folder, or the file or link that is in its place."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def move_into_place(aside: Path, folder: Path) -> None:
    """Move a finished folder into place; a damaged one that stood there is moved out of the way first."""
    for file in aside.rglob("*"):
        if file.is_file():
            _flush(file)
    folder.parent.mkdir(parents=True, exist_ok=True)
    damaged = aside.with_name(aside.name + _DAMAGED)
    if os.path.lexists(folder):
        folder.rename(damaged)
    aside.rename(folder)
    _remove(damaged)
    for path in (folder, folder.parent):
        _flush(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def reference(folder: Path, manifest: Manifest) -> ArtifactRef:
    """Refer to a folder, by its name in the store where it lies there."""
    name = folder.relative_to(store_root()) if folder.is_relative_to(store_root()) else folder
    return ArtifactRef(name=name.as_posix(), digest=manifest.digest, rows=manifest.rows)
