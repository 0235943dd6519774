"""The files of a source: on this machine, or behind a URL that fsspec supports."""

import contextlib
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from tasks.config import DataConfig, MixedSource
from tasks.errors import UserError
from tasks.process.failures import TRANSIENT_STATUS, causes, http_status, is_network_error
from tasks.store.checked import content_digest
from tasks.store.root import at_home, expanded
from tasks.text import hide_secrets, public_url, visible

TEXT = (".jsonl", ".json", ".csv")
ENDINGS = (*TEXT, ".parquet", ".arrow", *(kind + packed for kind in TEXT for packed in (".gz", ".zst")))
TEMPORARY = ("~", ".tmp", ".temp", ".swp", ".part", ".partial", ".crc", ".bak", ".crdownload", ".incomplete")
"""How the names of temporary files and backups end, before the format or instead of it."""
CACHED = re.compile(r"(^|/)cache-[0-9a-f]{16}[^/]*\.arrow$")
"""What `datasets` leaves beside the rows of a data set that was loaded from its folder and mapped."""
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
MARKS = ("ETag", "etag", "md5Hash", "Content-MD5", "sha", "blob_id", "LastModified", "last_modified", "Last-Modified")
"""Names that file systems give a file's version, the most reliable first. A file without one is read for a digest."""
BUFFER = 1 << 20


@dataclass(frozen=True)
class Place:
    """One file of the source.

    Args:
        where: path or URL.
        field: the field of the configuration that named it.
        mark: version of a remote file's content; empty for a file on this machine.
    """

    where: str
    field: str
    mark: str = ""

    @property
    def remote(self) -> bool:
        return "://" in self.where

    @property
    def shown(self) -> str:
        """For messages: a URL without secrets."""
        return public_url(self.where)

    @property
    def name(self) -> str:
        return self.shown.rsplit("/", 1)[-1]

    def open(self) -> BinaryIO:
        if not self.remote:
            return Path(self.where).open("rb", buffering=BUFFER)
        with trouble(self.where, self.field):
            system, path = _system(self.where)
            return cast(BinaryIO, io.BufferedReader(system.open(path, "rb"), BUFFER))

    def check_unchanged(self) -> None:
        """Check after reading that a remote file is still the one that the key names.

        Raises:
            UserError: it is not.
        """
        if self.mark and self.mark != _mark(self.where, self.field):
            raise UserError(f"{self.field}: {self.shown} changed while this run read it; run again.")


def check_names(columns: list[str], place: Place) -> None:
    """
    Raises:
        UserError: two columns of a file have one name.
    """
    if twice := [name for name, count in Counter(columns).items() if count > 1]:
        raise UserError(f"{place.shown} has two columns called {twice[0]!r}; every column needs a name of its own.")


def sources_of(data: DataConfig) -> list[tuple[MixedSource | None, DataConfig]]:
    """The sources of `data.mix`, each with a configuration of its own; else the one there is."""
    if not data.mix:
        return [(None, data)]
    found: list[tuple[MixedSource | None, DataConfig]] = []
    for source in data.mix:
        update = source.model_dump(exclude={"name", "share", "max_rows", "repeat"}) | {"mix": []}
        if isinstance(data, PinnedData):
            pinned = data.files.get(f"mix {source.name}")
            update["files"] = {"path": pinned} if pinned else {}
        found.append((source, data.model_copy(update=update)))
    return found


class PinnedData(DataConfig):
    """A configuration whose remote files have been looked up: field → URL → mark."""

    files: dict[str, dict[str, str]]


def is_remote(data: DataConfig) -> bool:
    return any(map(_is_url, (data.path, data.test_path, *(source.path for source in data.mix))))


def _is_url(where: str) -> bool:
    return "://" in where and not where.startswith("file://")


def pin_files(data: DataConfig) -> PinnedData:
    """Look up the remote files of a configuration, so that a key names their content.

    Raises:
        UserError: nothing is there, or it may not be read.
        ConnectionError: a transient failure.
    """
    files = {
        field: {place.where: _mark(place.where, place.field) for place in find_files(where, f"data.{field}")}
        for field, where in (
            *(("path", data.path), ("test_path", data.test_path)),
            *((f"mix {source.name}", source.path) for source in data.mix),
        )
        if _is_url(where)
    }
    return PinnedData(**data.model_dump(), files=files)


def check_protocol(where: str, field: str) -> None:
    """Check a URL's protocol without using the network.

    Raises:
        UserError: fsspec does not support it, or its package is not installed.
    """
    import fsspec

    with trouble(where, field):
        fsspec.get_filesystem_class(where.partition("://")[0].rpartition("::")[2])


def places(data: DataConfig, field: str) -> list[Place]:
    """The files of `path` or `test_path`, sorted; those that are pinned as they were pinned."""
    if isinstance(data, PinnedData) and field in data.files:
        return [Place(where, f"data.{field}", mark) for where, mark in data.files[field].items()]
    return find_files(getattr(data, field), f"data.{field}")


def find_files(pattern: str, field: str) -> list[Place]:
    """The data files of a path, URL, folder or glob, sorted by name. A single file may have any ending.

    Raises:
        UserError: there is no file, or none with a known ending.
    """
    pattern = pattern.removeprefix("file://")
    if "://" in pattern:
        with trouble(pattern, field):
            alone, found = _find_remote(pattern)
    else:
        alone, found = _find_local(at_home(pattern, field))
    files = found if alone else [where for where in found if _is_data(public_url(where), pattern)]
    if not files:
        what = "holds no" if found else "does not exist or is empty; it takes a"
        where = public_url(pattern) if "://" in pattern else at_home(pattern, field).absolute()
        hidden = "; hidden and temporary ones are not taken" if any(w.lower().endswith(ENDINGS) for w in found) else ""
        raise UserError(f"{field}: {where} {what} {', '.join(ENDINGS)} file{hidden}.")
    if not alone and any(Path(public_url(where)).name == "dataset_info.json" for where in files):
        folder = public_url(pattern).rstrip("/")
        raise UserError(f"{field}: {folder} is of datasets.save_to_disk; name its rows alone: {folder}/**/*.arrow.")
    return [Place(where, field) for where in files]


def _is_data(where: str, pattern: str) -> bool:
    """Whether a file below a folder is data, and not a file that editors, notebooks or interrupted writers left."""
    name = where.lower()
    ending = max((e for e in ENDINGS if name.endswith(e)), key=len, default="")
    asked = expanded(public_url(pattern)).parts
    open_parts = [part for part in asked if re.search(r"[*?\[]", part)]
    below = [part for part in Path(where).parts if part not in asked]
    return (
        bool(ending)
        and not any(
            part.startswith((".", "_", "~", "#")) and not any(each.startswith(part[0]) for each in open_parts)
            for part in below
        )
        and not name.removesuffix(ending).endswith(TEMPORARY)
        and not CACHED.search(name)
    )


def _find_local(path: Path) -> tuple[bool, list[str]]:
    if path.is_file():
        return True, [str(path)]
    anchor = Path(path.anchor or ".")
    found = path.rglob("*") if path.is_dir() else anchor.glob(str(path.relative_to(path.anchor)))
    return False, [str(p) for p in sorted(found) if p.is_file()]


def _find_remote(pattern: str) -> tuple[bool, list[str]]:
    system, path = _system(pattern)
    web = pattern.startswith(("http://", "https://"))
    if not any(sign in path for sign in ("*" if web else "*?[")):
        if web or system.isfile(path):
            return True, [pattern]
        found = system.find(path)
    else:
        found = [name for name, about in system.glob(path, detail=True).items() if about.get("type") != "directory"]
    return False, sorted(system.unstrip_protocol(name) for name in found)


def _system(where: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(where, skip_instance_cache=True, use_listings_cache=False)


def _mark(where: str, field: str) -> str:
    """The version of a remote file: from its file system, or else a digest of its content."""
    with trouble(where, field):
        system, path = _system(where)
        about = system.info(path)
        marks = {name: str(about[name]) for name in MARKS if about.get(name)}
        if marks:
            return json.dumps([about.get("size"), *next(iter(marks.items()))])
        with system.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def digest(place: Place) -> str:
    """The digest or version of a file's content, for a key."""
    return place.mark or (_mark(place.where, place.field) if place.remote else content_digest(Path(place.where)))


@contextlib.contextmanager
def trouble(where: str, field: str) -> Iterator[None]:
    """Turn errors of reading a URL into one sentence; transient ones become a ConnectionError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if said := _said(error, where, field):
            raise said from error
        hide_secrets(error)
        raise


def _said(error: BaseException, where: str, field: str) -> Exception | None:
    protocol, public = where.partition("://")[0], public_url(where)
    chain = list(causes(error))
    status = next(filter(None, map(http_status, chain)), 0)
    if isinstance(error, ImportError):
        package = PACKAGES.get(protocol)
        what = f"pip install {package}" if package else str(error)
        return UserError(f"{field}: {protocol}:// needs a package that is not installed here: {what}.")
    if isinstance(error, ValueError) and "not known" in str(error):
        return UserError(f"{field}: fsspec knows no {protocol}://; usual are https, {', '.join(PACKAGES)}.")
    names = {kind.__name__ for e in chain for kind in type(e).__mro__}
    if isinstance(error, PermissionError) or status in (401, 403) or any("Credentials" in name for name in names):
        return UserError(f"{field}: {public} may not be read with this machine's credentials.")
    if status and status not in TRANSIENT_STATUS and status != 404:
        return UserError(f"{field}: the server refuses {public} with HTTP {status}.")
    # fsspec reports any failure as "not found", with the network's error as its cause
    if status in TRANSIENT_STATUS or any(is_network_error(e) or isinstance(e, TimeoutError) for e in chain):
        why = chain[-1] or type(chain[-1]).__name__
        return ConnectionError(visible(f"{field}: {public} cannot be read: {why}"))
    if isinstance(error, FileNotFoundError) or status == 404:
        return UserError(f"{field}: {public} does not exist.")
    return None
