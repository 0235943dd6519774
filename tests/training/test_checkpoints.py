"""A checkpoint is used as it was written, or not at all; nothing in it is unpickled."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from tasks.training import checkpoints, memory


@pytest.fixture
def folder(tmp_path, store):
    """Checkpoints of step 3 and 6, made of two files each."""
    for step in (3, 6):
        written = tmp_path / ".writing-1" / f"checkpoint-{step}"
        written.mkdir(parents=True)
        (written / "adapter_model.safetensors").write_bytes(b"weights")
        (written / "trainer_state.json").write_text("{}")
        checkpoints.seal(written, tmp_path / f"checkpoint-{step}")
    (tmp_path / ".writing-1").rmdir()
    return tmp_path


def manifest(content):
    return lambda path: (path / "manifest.json").write_text(content)


def forged(path):
    """A manifest that lists a planted file, by someone who does not know of its own digest."""
    (path / "optimizer.pt").write_bytes(b"planted")
    content = json.loads((path / "manifest.json").read_text())
    content["files"]["optimizer.pt"] = {"size": 7, "sha256": hashlib.sha256(b"planted").hexdigest()}
    (path / "manifest.json").write_text(json.dumps(content))


def renamed(path):
    shutil.rmtree(path)
    path.with_name("checkpoint-3").rename(path)


DAMAGES = {
    "empty manifest": manifest("{}"),
    "manifest that is a list": manifest("[]"),
    "manifest without files": manifest('{"files": {}, "digest": ""}'),
    "manifest of wrong types": manifest('{"files": {"trainer_state.json": 1}, "digest": ""}'),
    "manifest that is no JSON": manifest("half a"),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "forged manifest": forged,
    "unlisted weights": lambda path: (path / "pytorch_model.bin").write_bytes(b"planted"),
    "unlisted folder": lambda path: (path / "global_step6").mkdir(),
    "missing file": lambda path: (path / "trainer_state.json").unlink(),
    "changed file": lambda path: (path / "adapter_model.safetensors").write_bytes(b"Weights"),
    "folder for a file": lambda path: (path / "trainer_state.json").unlink() or (path / "trainer_state.json").mkdir(),
    "pipe for a file": lambda path: (path / "trainer_state.json").unlink() or os.mkfifo(path / "trainer_state.json"),
    "file for the folder": lambda path: shutil.rmtree(path) or path.write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_one_is_removed_and_the_one_before_is_used(folder, damage):
    damage(folder / "checkpoint-6")
    said: list[str] = []
    assert checkpoints.last_valid(folder, said.append) == folder / "checkpoint-3"
    assert len(said) == 1 and said[0].startswith("checkpoint-6 is damaged and removed: "), said
    assert [path.name for path in folder.iterdir()] == ["checkpoint-3"]
    assert checkpoints.last_valid(folder, said.append) and len(said) == 1


def test_one_of_another_step_is_not_taken_for_this_one(folder):
    renamed(folder / "checkpoint-6")
    assert checkpoints.last_valid(folder) is None


@pytest.mark.parametrize("name", ["checkpoint-", "checkpoint-²", "checkpoint-06", "checkpoint--9", "checkpoint-9.tmp"])
def test_other_names_are_no_checkpoints(folder, name):
    (folder / name).mkdir()
    assert checkpoints.last_valid(folder) == folder / "checkpoint-6"


@pytest.mark.parametrize("content", ["", "many", "-5", "0", "²", "1e9", "99999999999", "12 ", "1_000"])
def test_damaged_advice_on_tokens_at_once_is_ignored_and_said(tmp_path, content):
    (tmp_path / "tokens_at_once").write_text(content)
    said: list[str] = []
    assert memory.saved_budget(tmp_path, said.append) == 0
    assert len(said) == 1 and "tokens_at_once is ignored: it takes a whole number" in said[0]
    assert memory.saved_budget(tmp_path, said.append) == 0 and len(said) == 1


def test_advice_on_tokens_at_once_is_taken(tmp_path):
    with pytest.raises(memory.ShardedOutOfMemory):
        memory.end_attempt(tmp_path, 512, "here")
    assert memory.saved_budget(tmp_path, print) == 512


class Planted:
    """Runs code where it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self):
        return Path.touch, (self.proof,)


def test_nothing_of_a_checkpoint_is_unpickled(build, tmp_path):
    """Also where its manifest is in order, as somebody who may write to the store can make it."""
    proof = tmp_path / "proof"
    pickle.loads(pickle.dumps(Planted(proof)))
    assert proof.exists() and not proof.unlink()
    broken = build("run")
    broken.step.schedule.steps = 5
    broken.run()
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin"):
        resumed = build(file)
        written, kept = tmp_path / "written" / file, resumed.step.folder / "checkpoint-10"
        shutil.copytree(broken.step.folder / "checkpoint-10", written)
        torch.save(Planted(proof), written / file)
        if file == "adapter_model.bin":
            (written / "adapter_model.safetensors").unlink()
        (written / "manifest.json").unlink()
        checkpoints.seal(written, kept)
        if file == "training_args.bin":
            resumed.run()  # nobody reads it
        else:
            with pytest.raises(Exception, match=r"[Ww]eights.only|safetensors"):
                resumed.run()
        assert resumed.said[0] == "resuming from the checkpoint of step 10" and not proof.exists()
