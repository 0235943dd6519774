"""Files behind URLs: found, read, told apart by their content, and what goes wrong is one sentence or tried again."""

import gzip
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import DataConfig, ModelConfig
from tasks.download.identity import check_unchanged, moving, pin, rows_identity
from tasks.download.places import trouble
from tasks.download.rows import write_rows
from tasks.errors import UserError
from tasks.process.failures import is_transient
from tests.tiny import make_rows, read_rows_file, write_jsonl

MODEL = ModelConfig()


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Shelf(http.server.BaseHTTPRequestHandler):
    """Serves `files` with ETag and byte ranges, or neither when it is `plain`; `status` alone when it is set."""

    plain = False
    files: dict[str, bytes] = {}  # noqa: RUF012
    status = 0
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        body = self.files.get(self.path.partition("?")[0])
        if self.status or body is None:
            self.send_error(self.status or 404)
            return
        start, end, code = 0, len(body) - 1, 200
        if self.plain:
            self.send_response(200)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
            return
        if given := self.headers.get("Range"):
            first, _, last = given.removeprefix("bytes=").partition("-")
            start, end, code = int(first), min(int(last or end), end), 206
        self.send_response(code)
        self.send_header("Content-Length", str(end - start + 1))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", hashlib.sha256(body).hexdigest())
        if code == 206:
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(body)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start : end + 1])

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server on this machine."""
    monkeypatch.setattr(Shelf, "files", {})
    monkeypatch.setattr(Shelf, "status", 0)
    monkeypatch.setattr(Shelf, "plain", False)
    monkeypatch.setattr(Shelf, "asked", [])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shelf)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def read(tmp_path: Path, **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    info = write_rows(pin(DataConfig(**fields), MODEL)[0], out).model_dump()
    return read_rows_file(out / "rows.parquet"), info


def key(**fields: Any) -> str:
    return rows_identity(pin(DataConfig(**fields), MODEL)[0]).key


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "parquet", "arrow"])
def test_rows_are_read_through_the_web(tmp_path: Path, web: str, kind: str) -> None:
    rows, sink = make_rows(30), pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows)
    if kind == "parquet":
        pq.write_table(table, sink)
    elif kind == "arrow":
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif kind == "jsonl.zst":
        with pa.CompressedOutputStream(sink, "zstd") as packed:
            packed.write(lines(rows))
    else:
        sink.write(
            {"jsonl": lines(rows), "jsonl.gz": gzip.compress(lines(rows)), "json": json.dumps(rows).encode()}[kind]
        )
    Shelf.files[f"/data/rows.{kind}"] = sink.getvalue().to_pybytes()
    found, info = read(tmp_path, path=f"{web}/data/rows.{kind}?download=secret")
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    assert info["rows"] == 30 and sum(info["formats"].values()) == 1


def test_a_large_file_comes_in_pieces(tmp_path: Path, web: str) -> None:
    rows = [{"id": f"r{n}", "text": f"{n} " * 2000} for n in range(1500)]
    Shelf.files["/rows.jsonl"] = lines(rows)
    assert len(Shelf.files["/rows.jsonl"]) > 12 << 20
    found, _ = read(tmp_path, path=f"{web}/rows.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert sum(line.startswith("GET") for line in Shelf.asked) > 2


def test_a_changed_file_behind_the_same_url_is_noticed(web: str) -> None:
    Shelf.files["/rows.jsonl"] = lines(make_rows(20))
    first = key(path=f"{web}/rows.jsonl")
    assert key(path=f"{web}/rows.jsonl?download=2") == first
    Shelf.files["/rows.jsonl"] = lines(make_rows(19) + make_rows(21)[20:])  # as long as before
    assert key(path=f"{web}/rows.jsonl") != first


def test_a_server_that_tells_nothing_is_read_once_more(tmp_path: Path, web: str) -> None:
    Shelf.plain = True
    Shelf.files["/rows.jsonl.gz"] = gzip.compress(lines(make_rows(300)))
    found, _ = read(tmp_path, path=f"{web}/rows.jsonl.gz")
    assert len(found) == 300
    first = key(path=f"{web}/rows.jsonl.gz")
    assert key(path=f"{web}/rows.jsonl.gz") == first
    Shelf.files["/rows.jsonl.gz"] = gzip.compress(lines(make_rows(299) + make_rows(301)[300:]))
    assert key(path=f"{web}/rows.jsonl.gz") != first


def test_a_file_that_changes_while_it_is_read_ends_the_run(tmp_path: Path, web: str) -> None:
    Shelf.files["/rows.jsonl"] = lines(make_rows(20))
    data, _ = pin(DataConfig(path=f"{web}/rows.jsonl"), MODEL)
    Shelf.files["/rows.jsonl"] = lines(make_rows(21))
    with pytest.raises(UserError, match=r"data.path: http.*rows.jsonl changed while this run read it"):
        write_rows(data, tmp_path)


def test_the_pinned_files_are_not_asked_for_again(web: str) -> None:
    Shelf.files["/rows.jsonl"] = lines(make_rows(20))
    data, _ = pin(DataConfig(path=f"{web}/rows.jsonl"), MODEL)
    asked = len(Shelf.asked)
    rows_identity(data)
    assert len(Shelf.asked) == asked


def test_globs_and_folders_of_a_file_system(tmp_path: Path, memory: Any) -> None:
    rows = make_rows(40)
    for number in range(2):
        memory.pipe(f"/bucket/part{number}.jsonl", lines(rows[20 * number : 20 * number + 20]))
    memory.pipe("/bucket/notes.md", b"x")
    for path in ("memory://bucket/part*.jsonl", "memory://bucket"):
        found, info = read(tmp_path, path=path)
        assert [row["id"] for row in found] == [row["id"] for row in rows]
        assert info["formats"] == {"JSON lines": 2}
    first = key(path="memory://bucket")
    memory.pipe("/bucket/part1.jsonl", lines(rows[20:39] + make_rows(41)[40:]))
    assert key(path="memory://bucket") != first


def test_held_out_rows_behind_a_url_of_their_own(tmp_path: Path, memory: Any) -> None:
    memory.pipe("/test.jsonl", lines([{"id": "t", "text": "x"}]))
    local = tmp_path / "rows.jsonl"
    local.write_bytes(lines([{"id": "a", "text": "y"}]))
    found, _ = read(tmp_path, path=str(local), test_path="memory://test.jsonl")
    assert [(row["id"], row["_split"]) for row in found] == [("t", "test"), ("a", "train")]


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(lines(make_rows(20)))
    data = DataConfig(path=f"file://{tmp_path}/rows.jsonl")
    assert moving(data, MODEL) == (False, False)
    assert key(path=data.path) == key(path=str(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gs://bucket/rows.jsonl", "data.path: gs:// needs a package that is not installed here: pip install gcsfs"),
        ("nothing://rows.jsonl", "data.path: fsspec knows no nothing://"),
        ("memory://nowhere/*.jsonl", "data.path: memory://nowhere/.* does not exist or is empty"),
        ("memory://nowhere.jsonl", "data.path: memory://nowhere.jsonl does not exist"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(memory: Any, path: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        pin(DataConfig(path=path), MODEL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "does not exist"), (403, "may not be read with this machine's credentials"), (410, "refuses .* HTTP 410")],
)
def test_a_server_that_refuses_is_one_sentence(web: str, status: int, message: str) -> None:
    Shelf.status = status
    with pytest.raises(UserError, match=f"data.path: .*{message}") as caught:
        pin(DataConfig(path=f"{web}/rows.jsonl?download=secret"), MODEL)
    assert "secret" not in str(caught.value)


def test_a_busy_or_absent_server_is_tried_again(web: str) -> None:
    Shelf.status = 503
    for path in (f"{web}/rows.jsonl", "http://127.0.0.1:9/rows.jsonl"):
        with pytest.raises(ConnectionError, match=r"data\.path: http") as caught:
            pin(DataConfig(path=path), MODEL)
        assert is_transient(caught.value)


class NoCredentialsError(Exception):
    """Called as botocore calls it."""


class EndpointConnectionError(type("ConnectionError", (Exception,), {"__module__": "botocore.exceptions"})):  # type: ignore[misc]
    """The same: its base is no ConnectionError of Python."""


def test_what_other_file_systems_raise_is_understood() -> None:
    refused = "s3://bucket/a may not be read with this machine's credentials"
    with pytest.raises(UserError, match=refused), trouble("s3://bucket/a", "data.path"):
        raise NoCredentialsError("Unable to locate credentials")
    passing = "s3://bucket/a cannot be read: no endpoint"
    with pytest.raises(ConnectionError, match=passing) as caught, trouble("s3://bucket/a", "data.path"):
        raise EndpointConnectionError("no endpoint")
    assert is_transient(caught.value)
    with pytest.raises(RuntimeError, match="a fault of ours"), trouble("s3://bucket/a", "data.path"):
        raise RuntimeError("a fault of ours")


def test_a_server_that_goes_away_while_it_is_read_is_tried_again(tmp_path: Path, web: str) -> None:
    Shelf.files["/rows.jsonl"] = lines(make_rows(20))
    data, _ = pin(DataConfig(path=f"{web}/rows.jsonl"), MODEL)
    Shelf.status = 503
    with pytest.raises(ConnectionError) as caught:
        write_rows(data, tmp_path)
    assert is_transient(caught.value)


def test_a_local_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", make_rows(20))
    data = DataConfig(path=str(file))
    named = rows_identity(data)
    check_unchanged(named, data)
    write_jsonl(tmp_path / "b.jsonl", make_rows(21)).replace(file)
    with pytest.raises(UserError, match="changed while this run read it; run again"):
        check_unchanged(named, data)
