"""What the Hub refuses is one sentence; a busy Hub is an error that is tried again."""

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
from tasks.download.sources import hub_splits
from tasks.errors import UserError
from tasks.failures import passes_by_itself

MODEL = ModelConfig(base="owner/model")


def answers(status: int) -> Any:
    def refuse(*_: Any, **__: Any) -> None:
        raise HfHubHTTPError("no", response=httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid")))

    return refuse


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


def test_a_subset_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: Any, **__: Any) -> None:
        raise ValueError(
            "Config name is missing.\nPlease pick one among the available configs: ['de', 'en']\nExample: x"
        )

    monkeypatch.setattr(datasets, "get_dataset_split_names", ask)
    with pytest.raises(UserError, match=r"data.hub_subset: owner/data takes one of \['de', 'en'\]\.$"):
        hub_splits(DataConfig(hub_id="owner/data"))


def test_a_data_set_that_is_a_script_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
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
    assert passes_by_itself(caught.value)
