"""Folders appear whole or not at all, are checked before use, and are computed once."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.process.failures import is_transient
from tasks.store.artifact import ArtifactRef, in_use, locked, produce, work_folder
from tasks.store.caching import VerifiedJSONSerializer
from tasks.store.identity import Identity
from tasks.store.manifest import DamagedArtifact
from tests.tiny import Rows

ROOT = Path(__file__).parents[2]
WHO = Identity(stage="test", config={"n": 1})


def writer(content: str = "content") -> Callable[[Path], dict]:
    def write(folder: Path) -> Rows:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_text(content)
        return Rows(rows=3)

    return write


def never(folder: Path) -> Rows:
    raise AssertionError("computed again")


def leftovers(store: Path) -> list[Path]:
    return [p for p in (store / "artifacts").iterdir() if p.name.startswith(".")]


def test_a_finished_folder_is_used_again(store: Path) -> None:
    ref = produce(WHO, writer())
    assert produce(WHO, never) == ref
    assert ref.rows == 3
    assert ref.facts(Rows) == Rows(rows=3)
    assert ref.name == f"artifacts/{WHO.key}"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "part" / "file").write_text("CONTENT"), "has changed"),
        (lambda folder: (folder / "part" / "file").write_text("c"), "has 1 bytes instead of 7"),
        (lambda folder: (folder / "part" / "file").unlink(), "is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "no readable manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "no readable manifest.json"),
    ],
)
def test_damage_is_noticed_and_mended(store: Path, damage: Callable[[Path], None], reason: str) -> None:
    ref = produce(WHO, writer())
    damage(ref.path)
    with pytest.raises(DamagedArtifact, match=reason):
        ref.verify()
    said: list[str] = []
    assert produce(WHO, writer(), said.append) == ref
    assert reason in said[0]
    ref.verify()
    assert leftovers(store) == []


def test_a_file_or_link_in_the_place_of_a_result_is_replaced_each_time(store: Path) -> None:
    folder = produce(WHO, writer()).path
    for put in (
        lambda: folder.write_text(""),
        lambda: folder.symlink_to("/nowhere"),
        lambda: folder.symlink_to(folder),
    ):
        shutil.rmtree(folder)
        put()
        produce(WHO, writer()).verify()
        assert leftovers(store) == []


def test_a_failure_leaves_nothing_but_the_work_folder(store: Path) -> None:
    def fail(folder: Path) -> Rows:
        (folder / "half").write_text("half")
        work_folder(WHO).mkdir(parents=True)
        (work_folder(WHO) / "checkpoint").write_text("kept")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        produce(WHO, fail)
    assert list((store / "artifacts").iterdir()) == []
    assert (work_folder(WHO) / "checkpoint").exists()
    produce(WHO, writer())
    assert not work_folder(WHO).exists()


def test_another_digest_is_not_the_recorded_result(store: Path) -> None:
    ref = produce(WHO, writer())
    with pytest.raises(DamagedArtifact, match="has changed since"):
        ArtifactRef(name=ref.name, digest="0" * 64).verify()


def test_prefects_record_is_refused_when_the_files_are_damaged(store: Path) -> None:
    ref = produce(WHO, writer())
    serializer = VerifiedJSONSerializer()
    blob = serializer.dumps(ref)
    assert b"rows" in blob and len(blob) < 1000
    assert serializer.loads(blob) == ref
    (ref.path / "part" / "file").write_text("CONTENT")
    with pytest.raises(DamagedArtifact):
        serializer.loads(blob)


SLOW = """
import sys, time
from pathlib import Path
from typing import Any
from tasks.store.artifact import produce
from tasks.store.facts import Facts
from tasks.store.identity import Identity
def write(folder):
    with open(sys.argv[1], "a") as file: file.write("computed\\n")
    time.sleep(float(sys.argv[2]))
    (folder / "file").write_text("x")
    return Facts()
print("ready", flush=True)
print(produce(Identity(stage="slow"), write).digest)
"""


def start(counter: Path, seconds: float, folder: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SLOW, str(counter), str(seconds)]
    there = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(command, cwd=folder, env=there, stdout=subprocess.PIPE, text=True)


def test_two_processes_compute_once_also_where_they_see_the_store_elsewhere(store: Path, tmp_path: Path) -> None:
    """As two machines with one mount: another path, another working directory."""
    store.mkdir()
    (tmp_path / "mount").mkdir()
    (tmp_path / "mount" / "point").symlink_to(store)
    counter = tmp_path / "counter"
    processes = [
        start(counter, 1.0),
        start(counter, 1.0, tmp_path / "mount", QLORA_FLOW_STORE="point"),
    ]
    answers = [process.communicate()[0] for process in processes]
    assert counter.read_text() == "computed\n"
    assert len({answer.split()[-1] for answer in answers}) == 1


def test_a_killed_holder_frees_the_key_and_its_half_folder_goes(store: Path, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    first = start(counter, 3600)
    while not counter.exists():
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert start(counter, 0).communicate()[0]
    assert counter.read_text() == "computed\ncomputed\n"
    assert leftovers(store) == []


def test_a_kill_between_the_two_renames_leaves_nothing_for_long(store: Path) -> None:
    ref = produce(WHO, writer())
    ref.path.rename(ref.path.with_name(f".{ref.path.name}-damaged"))
    assert produce(WHO, writer()) == ref
    assert leftovers(store) == []


def test_a_store_that_moved_is_used_where_it_is_now(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = VerifiedJSONSerializer().dumps(produce(WHO, writer()))
    store.rename(store.with_name("moved"))
    with pytest.raises(DamagedArtifact):
        VerifiedJSONSerializer().loads(blob)
    monkeypatch.setenv("QLORA_FLOW_STORE", str(store.with_name("moved")))
    assert VerifiedJSONSerializer().loads(blob) == produce(WHO, never)


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_made_from_an_input_that_changes_while_it_is_read(store: Path, fails: bool) -> None:
    source, later = produce(WHO, writer()), Identity(stage="later")

    def reads(folder: Path) -> Rows:
        work_folder(later).mkdir(parents=True)
        flip(source.path / "part" / "file")
        if fails:
            raise OSError("what is read makes no sense")
        return Rows()

    with pytest.raises(DamagedArtifact, match="part/file has changed"):
        produce(later, reads, inputs=[source])
    assert not (store / "artifacts" / later.key).exists() and not work_folder(later).exists()
    with pytest.raises(DamagedArtifact, match="part/file has changed"):
        produce(later, never, inputs=[source])  # not even begun
    produce(WHO, writer())
    assert produce(later, lambda folder: Rows(), inputs=[source]).verify() is None


def test_a_reference_reads_the_manifest_it_was_made_from(store: Path) -> None:
    ref = produce(WHO, writer())
    shutil.rmtree(ref.path)
    produce(WHO, writer("other"))
    with pytest.raises(DamagedArtifact, match="has changed since"):
        _ = ref.manifest


PERMISSIONS = """
from pathlib import Path
from typing import Any
from tasks.publishing.registry import add_version
from tasks.store.artifact import produce
from tasks.store.facts import Facts
from tasks.store.identity import Identity
def write(folder, version=""):
    (folder / "adapter").mkdir(mode=0o700)
    (folder / "adapter" / "weights").touch(mode=0o600)
    return Facts()
made = produce(Identity(stage="train"), write).path
version = add_version(Identity(stage="publish"), Path(REGISTRY) / "demo", write).path
for path in (made, made / "adapter", made / "adapter/weights", made / "manifest.json"):
    print(f"{path.stat().st_mode & 0o777:o}", end=" ")
for path in (version.parents[2], version.parents[1], version.parents[0], version, *sorted(version.rglob("*"))):
    print(f"{path.stat().st_mode & 0o777:o}", end=" ")
"""


@pytest.mark.parametrize(
    ("umask", "stage", "store_folder", "version"),
    [
        (0o022, "755 755 644 644", "755", "755 755 755 755 644 644"),
        (0o027, "750 750 640 640", "750", "750 750 750 750 640 640"),
        (0o077, "700 700 600 600", "710", "750 750 750 750 640 640"),
    ],
)
def test_files_follow_the_umask_and_a_registry_can_be_read_by_its_group(
    store: Path, umask: int, stage: str, store_folder: str, version: str
) -> None:
    code = PERMISSIONS.replace("REGISTRY", repr(str(store / "registry")))
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, cwd=ROOT, umask=umask, capture_output=True, text=True)
    assert shown.stdout.strip() == f"{stage} {store_folder} {version}", shown.stderr


def test_a_lock_is_open_for_reading_and_writing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFSv4 refuses a shared lock on a file that is open for writing alone, and an exclusive one for reading alone."""
    modes: list[int] = []
    monkeypatch.setattr(
        fcntl, "flock", lambda file, mode: modes.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE)
    )
    with in_use(), locked("key"):
        assert modes == [os.O_RDWR] * 2


@pytest.mark.parametrize("name", ["manifest.json", "file"])
def test_a_disk_that_does_not_answer_damages_nothing(store: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Or else hours of training would be thrown away for an error that passes."""
    source, later = produce(WHO, writer()), Identity(stage="later")
    before = {method: getattr(Path, method) for method in ("open", "stat")}

    def reads(folder: Path) -> Rows:
        work_folder(later).mkdir(parents=True)
        for method, own in before.items():
            monkeypatch.setattr(Path, method, failing(own))
        return Rows()

    def failing(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, *arguments: Any, **named: Any) -> Any:
            if path.name == name and path.is_relative_to(source.path):
                raise OSError(errno.ESTALE, "Stale file handle")
            return own(path, *arguments, **named)

        return call

    with pytest.raises(OSError, match="Stale") as error:
        produce(later, reads, inputs=[source])
    assert is_transient(error.value)
    for method, own in before.items():
        monkeypatch.setattr(Path, method, own)
    assert work_folder(later).exists()
    assert produce(WHO, never) == source
