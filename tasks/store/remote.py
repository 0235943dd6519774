"""A remote store that machines share: a result that one has computed, another fetches.

    QLORA_FLOW_REMOTE=s3://bucket/folder    or any URL that fsspec knows
    REMOTE/blobs/<sha256>                   every file, by its content
    REMOTE/manifests/<stage>-<key>.json     written last: a result without one is not there
    REMOTE/checkpoints/<stage>-<key>/       the same for the last checkpoint of a stage that is still computing

Blobs are named by content, so two machines that compute one key at the same time cannot mix their files: each manifest
names its own, and the first one stays. Locks are a machine's own.
"""

import contextlib
import copy
import errno
import os
import re
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath

from tasks.errors import UserError
from tasks.store.identity import file_digest
from tasks.store.manifest import LARGEST, DamagedArtifact, Manifest
from tasks.text import hide_secrets, public_url, visible

_KEY, _MANIFEST = re.compile(r"[a-z]+-[0-9a-f]{32}"), re.compile(r"[a-z]+-[0-9a-f]{32}\.json")
_DIGEST = re.compile("[0-9a-f]{64}")
_UNUSABLE = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
RENEWED_AFTER = timedelta(days=7)
"""Age of a manifest at which fetching its result makes it new."""


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

    def checkpoints(self, key: str) -> "Remote":
        """The place for the checkpoints of a stage, with blobs and manifests of its own."""
        place = copy.copy(self)
        place.root = self.root / "checkpoints" / key
        return place

    def listed(self) -> list[str]:
        """Keys of the manifests that are there, damaged ones included."""
        return [name.removesuffix(".json") for name in self._names("manifests", _MANIFEST)]

    def manifest(self, key: str, log: Callable[[str], None] = lambda line: None) -> Manifest | None:
        """The manifest of a result, None where it has none or a damaged one, which the log is told."""
        with self._reaching():
            if (size := self._size(self._manifest(key))) is None:
                return None
            raw = self.fs.cat_file(self._manifest(key)) if size <= LARGEST else b""
        try:
            manifest = Manifest.parse(raw)
            if manifest.key != key:
                raise ValueError("it is another result's")
        except ValueError as error:
            log(f"{key} is not fetched: its manifest in {self.url} is damaged ({error})")
            return None
        return manifest

    def fetch(self, manifest: Manifest, folder: Path) -> None:
        """Bring a result's files into an empty folder.

        Raises:
            DamagedArtifact: one is missing or changed. It and the manifest are removed; the next result replaces both.
        """
        with contextlib.suppress(Exception):  # so that `expire` sees that it is of use; some may only read
            if self._written(self._manifest(manifest.key)) < datetime.now(UTC) - RENEWED_AFTER:
                self.fs.pipe_file(self._manifest(manifest.key), manifest.encoded())
        for name, expected in manifest.files.items():
            file, blob = folder / name, self._blob(expected.sha256)
            file.parent.mkdir(parents=True, exist_ok=True)
            with self._reaching(), contextlib.suppress(FileNotFoundError):
                if self._size(blob) == expected.size:
                    self.fs.get_file(blob, str(file))
            if not file.is_file() or file_digest(file) != expected.sha256:
                self.forget(manifest.key)
                self._remove(blob)
                raise DamagedArtifact(f"{name} in {self.url} is missing or not what its manifest says")

    def push(self, manifest: Manifest, folder: Path, replace: bool = False) -> bool:
        """Bring a finished result there, unless one of its key is there already. Returns whether anything was to do.

        Args:
            replace: one with other files is not enough.
        """
        there = self.manifest(manifest.key)
        if there and (there.digest == manifest.digest or not replace):
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
        self._remove(self._manifest(key))

    def expire(self, days: float, keep: Collection[str]) -> None:
        """Remove what was not written or fetched for so long, except keys in `keep`, and blobs that no result names."""
        since = datetime.now(UTC) - timedelta(days=days)
        for key in self._names("checkpoints", _KEY):
            place = self.checkpoints(key)
            if all(place._written(place._manifest(one)) < since for one in place.listed()):
                place.keep_only(None)
        for key in self.listed():
            if key not in keep and self._written(self._manifest(key)) < since:
                self.forget(key)
        manifests = [manifest for key in self.listed() if (manifest := self.manifest(key))]
        named = {file.sha256 for manifest in manifests for file in manifest.files.values()}
        for digest in set(self._names("blobs", _DIGEST)) - named:
            if self._written(self._blob(digest)) < since:  # a younger one may be of a result that is on its way
                self._remove(self._blob(digest))

    def _written(self, path: str) -> datetime:
        """When a file was written last; now, where it is gone."""
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            written: datetime = self.fs.modified(path)
            return written if written.tzinfo else written.replace(tzinfo=UTC)
        return datetime.now(UTC)

    def keep_only(self, manifest: Manifest | None) -> None:
        """Remove every result but one, with its blobs; None: all of them. For places that share no blobs."""
        for key in self.listed():
            if manifest is None or key != manifest.key:
                self.forget(key)
        digests = {file.sha256 for file in manifest.files.values()} if manifest else set()
        for digest in set(self._names("blobs", _DIGEST)) - digests:
            self._remove(self._blob(digest))
        if manifest is None:
            for folder in ("blobs", "manifests", ""):
                with contextlib.suppress(Exception):  # an object store has no folders
                    self.fs.rmdir(str(self.root / folder))

    def _names(self, place: str, kind: re.Pattern[str]) -> list[str]:
        """Of the files in a folder that are called as ours are; a listing may hold anything."""
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            self.fs.invalidate_cache()
            names = (PurePosixPath(path).name for path in self.fs.ls(str(self.root / place), detail=False))
            return [name for name in names if kind.fullmatch(name)]
        return []

    def _size(self, path: str) -> int | None:
        """Bytes of a file, None where there is none. A link is removed, or we would write where it leads."""
        try:
            about = self.fs.info(path)
        except FileNotFoundError:
            return None
        if about.get("islink"):
            self._remove(path)
        return int(about["size"]) if about["type"] == "file" and not about.get("islink") else None

    def _remove(self, path: str) -> None:
        with self._reaching(), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(path)

    def _blob(self, digest: str) -> str:
        return str(self.root / "blobs" / digest)

    def _manifest(self, key: str) -> str:
        return str(self.root / "manifests" / f"{key}.json")

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (ImportError, ValueError, *_UNUSABLE) as error:
            raise UserError(f"QLORA_FLOW_REMOTE={self.url} cannot be used: {error}.") from error
        except OSError as error:
            hide_secrets(error)
            raise  # of a disk, or of a network that says what is wrong
        except Exception as error:  # every client has errors of its own
            message = visible(f"QLORA_FLOW_REMOTE={self.url} does not answer: {error}")
            raise ConnectionError(errno.EHOSTUNREACH, message) from error
