"""What the Hub refuses is one sentence; a busy Hub is an error that is tried again."""

import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects

from tasks.config import DataConfig, ModelConfig
from tasks.download.identity import pin
from tasks.download.models import fetch_model
from tasks.download.sources import hub_splits, read_hub
from tasks.errors import UserError
from tasks.process.failures import is_transient
from tests.tiny import make_rows, write_jsonl

MODEL = ModelConfig(base="owner/model")


def answers(status: int) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise HfHubHTTPError("no", response=httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid")))

    return refuse


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize(("status", "message"), [(401, "set HF_TOKEN"), (403, "ask for access"), (404, "unknown")])
def test_a_refusal_names_the_field(status: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", answers(status))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answers(status))
    with pytest.raises(UserError, match=f"data.hub_id: owner/data .*{message}"):
        pin(DataConfig(hub_id="owner/data"), MODEL)
    with pytest.raises(UserError, match=f"model.base: owner/model .*{message}"):
        pin(DataConfig(path="rows.jsonl"), MODEL)
    with pytest.raises(UserError, match=f"model.base: owner/model .*{message}"):
        fetch_model(MODEL, print)


def test_a_folder_of_the_same_name_is_not_read_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "data").mkdir(parents=True)
    write_jsonl(tmp_path / "owner" / "data" / "train.jsonl", make_rows(3))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.hub_id: owner/data is also in the working directory"):
        hub_splits(DataConfig(hub_id="owner/data"))


def test_a_subset_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise ValueError(
            "Config name is missing.\nPlease pick one among the available configs: ['de', 'en']\nExample: x"
        )

    monkeypatch.setattr(datasets, "get_dataset_split_names", ask)
    with pytest.raises(UserError, match=r"data.hub_subset: owner/data takes one of \['de', 'en'\]\.$"):
        hub_splits(DataConfig(hub_id="owner/data"))


def test_a_data_set_that_is_a_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.load.config, "HF_HUB_OFFLINE", False)
    answer = SimpleNamespace(sha="0" * 40, siblings=[], private=False, gated=False, id="owner/data")
    for name in ("dataset_info", "repo_info"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda *_, **__: answer)
    monkeypatch.setattr(huggingface_hub.HfApi, "hf_hub_download", lambda *_, **__: "data.py")
    with pytest.raises(UserError, match=r"data.hub_id: owner/data is a Python script"):
        hub_splits(DataConfig(hub_id="owner/data"))


def test_weights_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **fields: asked.update(fields) or tmp_path)
    with pytest.raises(UserError, match=r"has no config\.json"):
        fetch_model(MODEL, print)
    wanted = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    other = ["consolidated.safetensors", "original/params.json", "onnx/config.json", "pytorch_model.bin"]
    patterns = {name: asked[name] for name in ("allow_patterns", "ignore_patterns")}
    assert list(filter_repo_objects([*wanted, *other], **patterns)) == wanted


def test_a_busy_hub_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answers(503))
    with pytest.raises(HfHubHTTPError) as caught:
        fetch_model(MODEL, print)
    assert is_transient(caught.value)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> Path:
    """The Hub's cache with a model and a data set, as `hf download` leaves it, on a machine without a network."""
    for kind in ("models", "datasets"):
        (refs := tmp_path / f"{kind}--owner--name" / "refs").mkdir(parents=True)
        (refs / "main").write_text(COMMIT)
    shutil.copytree(tiny_model, tmp_path / "models--owner--name" / "snapshots" / COMMIT)
    (rows := tmp_path / "datasets--owner--name" / "snapshots" / COMMIT).mkdir(parents=True)
    write_jsonl(rows / "train.jsonl", make_rows(5))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_offline_a_cached_model_is_used(cached: Path, revision: str) -> None:
    _, model = pin(DataConfig(path="rows.jsonl"), ModelConfig(base="owner/name", revision=revision))
    assert model.revision == COMMIT
    assert fetch_model(model, print).folder == str(cached / "models--owner--name" / "snapshots" / COMMIT)


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_offline_a_cached_data_set_is_used(cached: Path, revision: str) -> None:
    data, _ = pin(DataConfig(hub_id="owner/name", hub_revision=revision), ModelConfig(base="."))
    assert data.hub_revision == COMMIT
    assert hub_splits(data) == ["train"]
    assert [row["id"] for block in read_hub(data, "train", Counter()) for row in block] == [
        row["id"] for row in make_rows(5)
    ]


def test_offline_what_is_not_cached_is_named_with_the_cache(cached: Path) -> None:
    with pytest.raises(
        UserError, match=rf"model.base: owner/other at this revision is not in the Hub's cache {cached}.*OFFLINE"
    ):
        fetch_model(ModelConfig(base="owner/other", revision=COMMIT), print)
    with pytest.raises(UserError, match=r"model.base: owner/name at this revision is not in the Hub's cache"):
        pin(DataConfig(path="rows.jsonl"), ModelConfig(base="owner/name", revision="v2"))


def test_an_online_run_notes_the_commit_for_offline_ones(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cached / "models--owner--name" / "refs" / "main").unlink()
    info = huggingface_hub.ModelInfo(id="owner/name", sha=COMMIT)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *_, **__: info)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    pin(DataConfig(path="rows.jsonl"), ModelConfig(base="owner/name"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert pin(DataConfig(path="rows.jsonl"), ModelConfig(base="owner/name"))[1].revision == COMMIT


@pytest.mark.parametrize(
    ("data", "model", "asked"),
    [
        (DataConfig(path="rows.jsonl"), MODEL, "model.base: owner/model"),
        (DataConfig(hub_id="owner/data"), ModelConfig(base="."), "data.hub_id: owner/data"),
    ],
)
def test_a_network_that_is_down_is_said_with_host_and_name_and_tried_again(
    data: DataConfig, model: ModelConfig, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("Connection refused")

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", refuse)
    with pytest.raises(
        ConnectionError, match=rf"{asked} cannot be asked for at https://.*: Connection refused"
    ) as caught:
        pin(data, model)
    assert is_transient(caught.value)
