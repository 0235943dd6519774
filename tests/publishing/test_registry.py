"""Versions are numbered, whole and provable."""

import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.errors import UserError
from tasks.publishing import hub
from tasks.publishing.facts import VersionFacts
from tasks.publishing.registry import add_version, versions
from tasks.publishing.task import write_sums
from tasks.store.identity import Identity, file_digest
from tasks.store.manifest import DamagedArtifact
from tests.tiny import noted


def add(folder: Path, content: str) -> Any:
    def write(aside: Path, version: str) -> VersionFacts:
        (aside / "adapter_model.safetensors").write_text(content)
        write_sums(aside)
        return noted(VersionFacts, version=version)

    return add_version(Identity(stage="publish", config={"content": content}), folder / "demo", write)


def test_versions_count_up_and_the_same_thing_is_one_version(tmp_path: Path, store: Path) -> None:
    first, second, again = add(tmp_path, "a"), add(tmp_path, "b"), add(tmp_path, "a")
    assert [path.name for path in versions(tmp_path / "demo")] == ["v0001", "v0002"]
    assert again == first != second
    assert second.facts(VersionFacts).version == "v0002"


def test_two_stores_share_a_registry(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = threading.Thread(target=add, args=(tmp_path, "b"))

    def write(aside: Path, version: str) -> VersionFacts:
        monkeypatch.setenv("QLORA_FLOW_STORE", str(tmp_path / "other"))
        other.start()
        other.join(0.5)
        (aside / "adapter_model.safetensors").write_text("a")
        return noted(VersionFacts, version=version)

    add_version(Identity(stage="publish"), tmp_path / "demo", write)
    other.join()
    found = [(path / "adapter_model.safetensors").read_text() for path in versions(tmp_path / "demo")]
    assert found == ["a", "b"]


def test_a_number_is_never_used_twice(tmp_path: Path, store: Path) -> None:
    add(tmp_path, "a")
    damaged = add(tmp_path, "b")
    (damaged.path / "adapter_model.safetensors").write_text("c")
    with pytest.raises(DamagedArtifact, match="has changed"):
        damaged.verify()
    assert add(tmp_path, "b").path.name == "v0003"
    assert (damaged.path / "adapter_model.safetensors").read_text() == "c"


def test_a_failing_write_leaves_nothing(tmp_path: Path, store: Path) -> None:
    def write(aside: Path, version: str) -> VersionFacts:
        (aside / "half").write_text("half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        add_version(Identity(stage="publish"), tmp_path / "demo", write)
    assert list((tmp_path / "demo").iterdir()) == []


def test_the_sums_are_what_sha256sum_reads(tmp_path: Path, store: Path) -> None:
    version = add(tmp_path, "a").path
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=version, capture_output=True, text=True)
    assert checked.stdout == "adapter_model.safetensors: OK\n"


class FakeHub:
    """What the Hub says it holds after an upload."""

    def __init__(self, sha256: str) -> None:
        self.sha256 = sha256

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        assert private and exist_ok

    def upload_folder(self, *, allow_patterns: list[str], **_: Any) -> Any:
        assert set(allow_patterns) == {"adapter_model.safetensors", "SHA256SUMS", "manifest.json"}
        return SimpleNamespace(oid="f" * 40)

    def get_paths_info(self, repo: str, paths: list[str], *, revision: str) -> list[Any]:
        assert revision == "f" * 40
        return [SimpleNamespace(path=path, lfs=SimpleNamespace(sha256=self.sha256)) for path in paths]


def test_an_upload_is_read_back(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    version = add(tmp_path, "a").path
    right = file_digest(version / "adapter_model.safetensors")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeHub(right))
    assert hub.upload(version, "someone/demo", True) == "f" * 40
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: FakeHub("0" * 64))
    with pytest.raises(RuntimeError, match="another adapter_model"):
        hub.upload(version, "someone/demo", True)


def test_a_refused_token_is_one_sentence(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    def refuse(*_: Any, **__: Any) -> None:
        answer = httpx.Response(403, request=httpx.Request("POST", "https://hub.invalid"))
        raise HfHubHTTPError("no", response=answer)

    fake = FakeHub("")
    fake.create_repo = refuse  # type: ignore[method-assign]
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    with pytest.raises(UserError, match="set HF_TOKEN"):
        hub.upload(add(tmp_path, "a").path, "someone/demo", True)
