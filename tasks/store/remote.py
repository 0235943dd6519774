"""A remote store that machines share: a result that one has computed, another fetches.

    QLORA_FLOW_REMOTE=s3://bucket/folder    or any URL that fsspec knows
    REMOTE/blobs/<sha256>                   every file, by its content
    REMOTE/manifests/<stage>-<key>.json     written last: a result without one is not there

Blobs are named by content, so two machines that compute one key at the same time cannot mix their files: each manifest
names its own, and the first one stays. Locks are a machine's own.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from tasks.errors import UserError
from tasks.store.identity import file_digest
from tasks.store.manifest import LARGEST, Manifest
from tasks.text import hide_secrets, public_url, visible


class DamagedBlob(RuntimeError):
    """A blob of the remote store does not match its name. It has been removed, and its result is computed again."""


class Remote:
    """The place that QLORA_FLOW_REMOTE names.

    Raises, in every method:
        UserError: the URL is wrong, needs a package that is not installed, or may not be used.
        ConnectionError: it does not answer, which is transient.
    """

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = public_url(url)
        with self._reaching():
            self.fs, root = url_to_fs(url)
            self.root = PurePosixPath(root)
            self.fs.invalidate_cache()

    @classmethod
    def configured(cls) -> "Remote | None":
        url = os.environ.get("QLORA_FLOW_REMOTE")
        return cls(url) if url else None

    def manifest(self, key: str, log: Callable[[str], None] = lambda line: None) -> Manifest | None:
        """The manifest of a result, None where it has none or a damaged one, which the log is told."""
        with self._reaching():
            size = self._size(self._manifest(key))
            raw = self.fs.cat_file(self._manifest(key)) if size and size <= LARGEST else b""
        if size is None:
            return None
        try:
            manifest = Manifest.parse(raw)
            if manifest.key != key or manifest.format == 1:
                raise ValueError("it is another result's, or of an earlier version of qlora-flow")
        except ValueError as error:
            log(f"{key} is not fetched: its manifest in {self.url} is damaged ({error})")
            return None
        return manifest

    def fetch(self, manifest: Manifest, folder: Path) -> None:
        """Bring a result's files into an empty folder.

        Raises:
            DamagedBlob: one is missing or changed; its manifest is gone now, so that the next result replaces both.
        """
        for name, expected in manifest.files.items():
            file, blob = folder / name, self._blob(expected.sha256)
            file.parent.mkdir(parents=True, exist_ok=True)
            with self._reaching(), contextlib.suppress(FileNotFoundError):
                if self._size(blob) == expected.size:
                    self.fs.get_file(blob, str(file))
            if not file.exists() or file_digest(file) != expected.sha256:
                self.forget(manifest.key)
                with self._reaching(), contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(blob)
                raise DamagedBlob(f"{name} in {self.url} is missing or not what its manifest says")

    def push(self, manifest: Manifest, folder: Path) -> bool:
        """Bring a finished result there, unless it is there. Returns whether anything was to do."""
        if self.manifest(manifest.key):
            return False
        with self._reaching():
            for place in ("blobs", "manifests"):
                self.fs.makedirs(str(self.root / place), exist_ok=True)
            for name, file in manifest.files.items():
                if self._size(self._blob(file.sha256)) != file.size:
                    self.fs.put_file(str(folder / name), self._blob(file.sha256))
            self.fs.pipe_file(self._manifest(manifest.key), manifest.encoded())
        return True

    def forget(self, key: str) -> None:
        """Remove a result's manifest, so that it is computed again; blobs may be others' as well and stay."""
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self._manifest(key))

    def _size(self, path: str) -> int | None:
        try:
            return int(self.fs.info(path)["size"])
        except FileNotFoundError:
            return None

    def _blob(self, digest: str) -> str:
        return str(self.root / "blobs" / digest)

    def _manifest(self, key: str) -> str:
        return str(self.root / "manifests" / f"{key}.json")

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (ImportError, ValueError, PermissionError, FileNotFoundError) as error:
            raise UserError(f"QLORA_FLOW_REMOTE={self.url} cannot be used: {error}.") from error
        except OSError as error:
            hide_secrets(error)
            raise  # of a disk, or of a network that says what is wrong
        except Exception as error:  # every client has errors of its own
            message = visible(f"QLORA_FLOW_REMOTE={self.url} does not answer: {error}")
            raise ConnectionError(errno.EHOSTUNREACH, message) from error
