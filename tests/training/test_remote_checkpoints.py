"""The last checkpoint is in the remote store too, and a machine with an empty disk goes on from it."""

import contextlib
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import psutil
import pytest

from tasks.errors import UserError
from tasks.process.child import run_child
from tasks.process.failures import ChildFailed
from tasks.store.artifact import write_manifest
from tasks.store.identity import Identity
from tasks.store.remote import Remote
from tasks.training import checkpoints
from tests import s3
from tests.training.launched import train_here


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch, store: Path) -> Any:
    """Where objects lie, as the file system and the folder of the checkpoints of the stage `work`."""
    monkeypatch.setenv("QLORA_FLOW_REMOTE", "memory://results")
    monkeypatch.setattr(checkpoints, "POLL_SECONDS", 0.01)
    fs = fsspec.filesystem("memory")
    yield fs, "/results/checkpoints/work"
    fs.store.clear()


def seal(folder: Path, step: int, content: str = "weights") -> Path:
    written = folder / ".writing-1" / f"checkpoint-{step}"
    written.mkdir(parents=True)
    (written / "weights").write_text(f"{content} {step}")
    (written / "state").write_text("{}")
    checkpoints.seal(written, folder / written.name)
    return folder / written.name


def copied(folder: Path, *steps: int) -> None:
    """An attempt that writes these checkpoints and is asked to end."""
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(KeyboardInterrupt), checkpoints.mirrored(folder, print, pytest.fail):
        for step in steps:
            seal(folder, step)
        raise KeyboardInterrupt


def successor(folder: Path) -> tuple[Path | None, list[str]]:
    """What an attempt in an empty folder goes on from, and what it says."""
    folder.mkdir(parents=True)
    said: list[str] = []
    with checkpoints.mirrored(folder, said.append, said.append):
        return checkpoints.last_valid(folder, said.append), said


@pytest.mark.slow
def test_a_killed_run_goes_on_elsewhere_to_the_same_bytes(
    job: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    pytest.importorskip("s3fs")
    worker = "tasks.training.worker"
    whole, lost = (job(name, 1) | {"checkpoint_steps": 20} for name in ("whole", "lost"))
    train_here(whole)
    with s3.served() as (bucket, environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        left: dict[str, bytes] = {}

        def kill(line: str) -> None:
            if "is in s3://bucket/folder now" in line:
                left.update(bucket.objects)  # what a machine that vanishes now leaves
                for process in psutil.Process().children():
                    if worker in process.cmdline():
                        process.kill()

        with pytest.raises(ChildFailed), checkpoints.mirrored(Path(lost["checkpoints"]), kill, pytest.fail):
            run_child(worker, lost, print)
        bucket.objects = left
        for disk in ("checkpoints", "output"):
            shutil.rmtree(lost[disk])
            Path(lost[disk]).mkdir()
        said: list[str] = []
        with checkpoints.mirrored(Path(lost["checkpoints"]), said.append, pytest.fail):
            train_here(lost, said.append)
    assert any(line.startswith("resuming from the checkpoint of step ") for line in said), said
    weights = "adapter/adapter_model.safetensors"
    assert Path(lost["output"], weights).read_bytes() == Path(whole["output"], weights).read_bytes()


def test_the_last_one_alone_is_kept_and_none_when_the_stage_is_done(remote: Any, tmp_path: Path) -> None:
    fs, place = remote
    copied(tmp_path / "a/work", 3, 6, 9)
    (manifest,) = (json.loads(fs.cat_file(file)) for file in fs.ls(f"{place}/manifests", detail=False))
    assert manifest["identity"]["config"] == {"name": "checkpoint-9"}
    assert len(fs.ls(f"{place}/blobs")) == 2
    found, _ = successor(tmp_path / "b/work")
    assert found and (found / "weights").read_text() == "weights 9"
    Remote.configured().checkpoints("work").keep_only(None)
    assert not fs.exists(place)


def test_one_of_the_same_step_and_other_content_is_replaced(remote: Any, tmp_path: Path) -> None:
    """As another attempt on a GPU writes it."""
    copied(tmp_path / "a/work", 3)
    seal(tmp_path / "b/work", 3, "other weights")
    copied(tmp_path / "b/work")
    found, said = successor(tmp_path / "c/work")
    assert found and (found / "weights").read_text() == "other weights 3", said


def test_a_newer_one_on_this_machine_is_used(remote: Any, tmp_path: Path) -> None:
    copied(tmp_path / "a/work", 3)
    seal(tmp_path / "b/work", 6)
    said: list[str] = []
    with checkpoints.mirrored(tmp_path / "b/work", said.append, pytest.fail):
        assert checkpoints.last_valid(tmp_path / "b/work").name == "checkpoint-6"
    copied(tmp_path / "c/work", 12)
    (tmp_path / "b/work/checkpoint-6/weights").write_text("damaged")
    with checkpoints.mirrored(tmp_path / "b/work", said.append, pytest.fail):
        assert checkpoints.last_valid(tmp_path / "b/work").name == "checkpoint-12"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("changed", "weights in memory://results is missing or not what its manifest says"),
        ("longer", "weights in memory://results is missing or not what its manifest says"),
        ("half a manifest", "its manifest in memory://results is damaged"),
        ("manifest of a list", "its manifest in memory://results is damaged"),
        ("no file", "weights in memory://results is missing or not what its manifest says"),
        ("no manifest", ""),
    ],
)
def test_a_damaged_one_is_noticed_and_replaced(remote: Any, tmp_path: Path, damage: str, sentence: str) -> None:
    fs, place = remote
    copied(tmp_path / "a/work", 3)
    (manifest,) = fs.ls(f"{place}/manifests", detail=False)
    content = json.loads(fs.cat_file(manifest))
    blob = f"{place}/blobs/{content['files']['weights']['sha256']}"
    if damage == "changed":
        fs.pipe_file(blob, b"Weights 3")
    elif damage == "longer":
        fs.pipe_file(blob, b"weights 3 and more")
    elif damage == "half a manifest":
        fs.pipe_file(manifest, fs.cat_file(manifest)[:100])
    elif damage == "manifest of a list":
        fs.pipe_file(manifest, b"[]")
    else:
        fs.rm_file(blob if damage == "no file" else manifest)
    found, said = successor(tmp_path / "b/work")
    assert found is None
    assert (len(said) == 1 and sentence in said[0]) if sentence else said == []
    copied(tmp_path / "b/work", 3)
    found, said = successor(tmp_path / "c/work")
    assert found and (found / "weights").read_text() == "weights 3", said


@pytest.mark.parametrize("name", ["../../outside", "checkpoint-0", "checkpoint-9.tmp", 7])
def test_a_name_that_is_no_checkpoint_s_is_not_used(remote: Any, tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "weights").write_text("planted")
    manifest = write_manifest(Identity(stage="checkpoint", config={"name": name}), folder)
    Remote.configured().checkpoints("work").push(manifest, folder)
    found, said = successor(tmp_path / "b/work")
    assert found is None and "it is no checkpoint of this version" in said[0]
    assert [*(tmp_path / "b/work").iterdir()] == [] and not (tmp_path / "outside").exists()


@pytest.mark.parametrize("error", [ConnectionError("away"), OSError(28, "No space left on device"), UserError("no")])
def test_a_remote_store_that_fails_costs_a_warning_and_is_tried_again(
    remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    warned, arrived = [], threading.Event()
    (tmp_path / "work").mkdir()
    fs, _ = remote
    with contextlib.ExitStack() as away:
        patch = away.enter_context(pytest.MonkeyPatch.context())
        for method in ("ls", "info", "put_file"):
            patch.setattr(type(fs), method, fails)

        def warn(line: str) -> None:
            warned.append(line)
            away.close()  # it answers again

        with checkpoints.mirrored(tmp_path / "work", lambda _: arrived.set(), warn):
            away.push(lambda *_: None)
            if warned:  # about fetching
                for method in ("ls", "info", "put_file"):
                    away.enter_context(pytest.MonkeyPatch.context()).setattr(type(fs), method, fails)
            seal(tmp_path / "work", 3)
            assert arrived.wait(60)
    assert warned[0].startswith("no checkpoint is fetched from memory://results: ")
    assert warned[1].startswith("checkpoint-3 is not copied to memory://results for now: "), warned
