"""What one machine computed, another fetches; what is damaged on the way is computed."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tasks.errors import UserError
from tasks.process.failures import is_transient
from tasks.store.artifact import discard, produce, work_folder, write_manifest
from tasks.store.identity import Identity, digest_of
from tasks.store.remote import Remote
from tests.tiny import Rows

WHO = Identity(stage="test", config={"n": 1})


@pytest.fixture(params=["memory://results", "file"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    url = f"file://{tmp_path}/remote/results" if request.param == "file" else request.param
    monkeypatch.setenv("QLORA_FLOW_REMOTE", url)
    yield url
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`machine("a")`: from now on the store is that machine's."""
    return lambda name: monkeypatch.setenv("QLORA_FLOW_STORE", str(tmp_path / name))


def write(folder: Path) -> Rows:
    (folder / "part").mkdir()
    (folder / "part" / "file").write_text("content")
    (folder / "same").write_text("content")
    return Rows(rows=3)


def never(folder: Path) -> Rows:
    raise AssertionError("computed again")


def blobs(url: str) -> list[str]:
    fs, root = fsspec.core.url_to_fs(url)
    return fs.ls(f"{root}/blobs", detail=False)


def test_another_machine_fetches_what_one_computed(remote: str, machine: Callable[[str], None]) -> None:
    said: list[str] = []
    machine("a")
    ref = produce(WHO, write, said.append)
    assert len(blobs(remote)) == 1  # both files have one content
    machine("b")
    assert produce(WHO, never, said.append) == ref
    ref.verify()
    assert (ref.path / "part" / "file").read_text() == "content"
    assert said == [f"{WHO.key} is in {remote} now", f"{WHO.key} was fetched from {remote}"]


def test_a_result_that_cannot_be_copied_is_kept_and_copied_by_the_next_run(
    remote: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("a")
    with monkeypatch.context() as away:
        away.setattr(Remote, "push", lambda *_: (_ for _ in ()).throw(ConnectionError("away")))
        with pytest.raises(ConnectionError) as failure:
            produce(WHO, write)
    assert is_transient(failure.value)
    ref = produce(WHO, never)
    machine("b")
    assert produce(WHO, never) == ref


def test_a_damaged_blob_is_computed_and_replaced(remote: str, machine: Callable[[str], None]) -> None:
    said: list[str] = []
    machine("a")
    ref = produce(WHO, write)
    fs, _ = fsspec.core.url_to_fs(remote)
    fs.pipe_file(blobs(remote)[0], b"CONTENT")
    machine("b")
    assert produce(WHO, write, said.append) == ref
    assert "not what its manifest says" in said[0]
    machine("c")
    assert produce(WHO, never) == ref


def test_a_result_without_manifest_is_not_there(remote: str, machine: Callable[[str], None]) -> None:
    machine("a")
    produce(WHO, write)
    fs, root = fsspec.core.url_to_fs(remote)
    fs.rm_file(f"{root}/manifests/{WHO.key}.json")  # as a machine that was killed in the middle leaves it
    machine("b")
    with pytest.raises(AssertionError, match="computed again"):
        produce(WHO, never)


def test_what_could_not_be_brought_there_is_brought_by_the_next_attempt(
    remote: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("a")
    fs, _ = fsspec.core.url_to_fs(remote)
    with monkeypatch.context() as patch:
        patch.setattr(type(fs), "put_file", lambda *_, **__: 1 / 0)  # every client has errors of its own
        with pytest.raises(ConnectionError, match="does not answer") as away:
            produce(WHO, write)
    assert is_transient(away.value)
    ref = produce(WHO, never)
    machine("b")
    assert produce(WHO, never) == ref


def test_what_is_to_run_again_is_not_fetched(remote: str, machine: Callable[[str], None]) -> None:
    machine("a")
    produce(WHO, write)
    discard(WHO.key)
    with pytest.raises(AssertionError, match="computed again"):
        produce(WHO, never)


def sealed(manifest: dict[str, Any]) -> bytes:
    """As somebody writes it who knows how digest and checksum are made."""
    files = manifest.get("files", {})
    manifest["digest"] = digest_of({name: file["sha256"] for name, file in files.items()})
    manifest.pop("checksum", None)
    manifest["checksum"] = hashlib.sha256(json.dumps(manifest, ensure_ascii=False).encode()).hexdigest()
    return json.dumps(manifest, indent=1, ensure_ascii=False).encode()


def plain(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("damage", "written"),
    [
        (lambda manifest: manifest["files"].update({"../outside": manifest["files"]["same"]}), sealed),
        (lambda manifest: manifest["files"].update({"n" * 300: manifest["files"]["same"]}), sealed),
        (lambda manifest: manifest["files"]["same"].update(sha256="../../outside"), sealed),
        (lambda manifest: manifest["files"]["same"].update(size=-1), sealed),
        (lambda manifest: manifest["files"]["same"].update(size="7"), sealed),
        (lambda manifest: manifest.update(created="2026-13-41T25:61:61Z"), sealed),
        (lambda manifest: manifest.update(key="../../outside"), sealed),
        (lambda manifest: manifest["identity"].update(inputs={"adapter": 7}), sealed),
        *(
            (lambda manifest, value=value: manifest.update(identity=value), sealed)
            for value in (7, None, ["code"], "code")
        ),
        (lambda manifest: manifest.pop("seconds"), sealed),
        (lambda manifest: manifest["info"].update(rows=True), sealed),
        (lambda manifest: manifest["info"].update(rows=4), plain),
        (lambda manifest: [manifest.pop(name) for name in ("format", "checksum")], plain),
        (lambda manifest: manifest.clear(), plain),
        (lambda manifest: None, lambda manifest: b""),
        (lambda manifest: None, lambda manifest: b"[" * 100_000),
    ],
)
def test_a_manifest_is_not_trusted(
    remote: str,
    machine: Callable[[str], None],
    damage: Callable[[dict], None],
    written: Callable[[dict], bytes],
) -> None:
    machine("a")
    ref = produce(WHO, write)
    fs, root = fsspec.core.url_to_fs(remote)
    outside = f"{root.rpartition('/')[0]}/outside"  # what blobs/../../outside is
    fs.pipe_file(outside, b"kept")
    file = f"{root}/manifests/{WHO.key}.json"
    assert sealed(json.loads(fs.cat_file(file))) == fs.cat_file(file)
    manifest = json.loads(fs.cat_file(file))
    damage(manifest)
    fs.pipe_file(file, written(manifest))
    machine("b")
    said: list[str] = []
    assert produce(WHO, write, said.append) == ref
    assert said[0].startswith(f"{WHO.key} is not fetched: its manifest in {remote} is damaged (")
    assert fs.cat_file(outside) == b"kept"
    machine("c")
    assert produce(WHO, never) == ref  # the damaged one was replaced


def test_a_blob_of_another_size_is_not_fetched(
    remote: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("a")
    produce(WHO, write)
    fs, _ = fsspec.core.url_to_fs(remote)
    fs.pipe_file(blobs(remote)[0], b"content and so much more that the disk is full")
    monkeypatch.setattr(type(fs), "get_file", lambda *_, **__: 1 / 0)
    machine("b")
    assert produce(WHO, write).rows == 3


@pytest.mark.parametrize("place", ["blobs", "manifests"])
def test_a_planted_link_is_neither_read_nor_written_through(
    machine: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("QLORA_FLOW_REMOTE", f"file://{tmp_path}/remote")
    machine("a")
    ref = produce(WHO, write)
    (planted,) = (tmp_path / "remote" / place).iterdir()
    (tmp_path / "private").write_text("private")
    planted.unlink()
    planted.symlink_to(tmp_path / "private")
    machine("b")
    assert produce(WHO, write) == ref
    assert (tmp_path / "private").read_text() == "private" and not planted.is_symlink()
    machine("c")
    assert produce(WHO, never) == ref


@pytest.mark.parametrize("place", ["blobs", "manifests"])
def test_a_folder_in_place_of_a_file_is_one_sentence(
    machine: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("QLORA_FLOW_REMOTE", f"file://{tmp_path}/remote")
    machine("a")
    produce(WHO, write)
    (planted,) = (tmp_path / "remote" / place).iterdir()
    planted.unlink()
    planted.mkdir()
    machine("b")
    with pytest.raises(UserError, match=rf"QLORA_FLOW_REMOTE=.*/remote cannot be used: .*{planted.name}"):
        produce(WHO, write)


def test_checkpoints_go_when_their_stage_is_done(remote: str, machine: Callable[[str], None]) -> None:
    machine("a")
    folder = work_folder(WHO)

    def trains(aside: Path) -> Rows:
        folder.mkdir(parents=True)
        manifest = write_manifest(Identity(stage="checkpoint"), write_into(folder / "checkpoint-3"))
        Remote(remote).checkpoints(WHO.key).push(manifest, folder / "checkpoint-3")
        return write(aside)

    produce(WHO, trains)
    assert Remote(remote).checkpoints(WHO.key).listed() == [] and not folder.exists()
    assert len(blobs(remote)) == 1  # its own files stay


def write_into(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write(folder)
    return folder


@pytest.mark.parametrize("url", ["nonsense://somewhere", "gs://bucket/folder"])
def test_a_url_that_cannot_be_used_is_one_sentence(url: str) -> None:
    with pytest.raises(UserError, match=rf"QLORA_FLOW_REMOTE={url} cannot be used: .*(nonsense|gcsfs)"):
        Remote(url)
