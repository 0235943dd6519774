"""datasets, evaluate, fsspec and huggingface_hub: attributes and texts of errors that are known by name."""

import json
import re
from pathlib import Path
from typing import Any

import datasets
import evaluate
import fsspec
import pyarrow.compute as pc
import pytest
from huggingface_hub import constants, errors, snapshot_download

from tasks.download import places
from tasks.errors import UserError
from tasks.evaluation.metrics.rouge.rouge import Rouge
from tasks.process.failures import http_status


def test_data_of_a_dataset_is_an_arrow_table_in_the_order_of_its_rows() -> None:
    rows = datasets.Dataset.from_list([{"input_ids": [0] * length} for length in (3, 1, 2)])
    assert pc.list_value_length(rows.data["input_ids"]).to_pylist() == [3, 1, 2]


def test_scripts_are_no_longer_supported_is_said_of_a_data_set_that_is_code(tmp_path: Path) -> None:
    (tmp_path / f"{tmp_path.name}.py").write_text("raise SystemExit(9)")
    with pytest.raises(RuntimeError, match="scripts are no longer supported"):
        datasets.get_dataset_split_names(str(tmp_path / f"{tmp_path.name}.py"))


def test_config_not_found_lists_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"a": 1}))
    subsets = "".join(f"- config_name: {name}\n  data_files: rows.jsonl\n" for name in ("one", "two"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{subsets}---\n")
    for subset in ("three", ""):
        with pytest.raises(ValueError) as error:
            datasets.get_dataset_split_names(str(tmp_path), subset or None)
        found = re.search(r"onfig.*(\[.*\])", str(error.value), re.DOTALL)
        assert found and found[1] == "['one', 'two']"


def test_info_and_compute_of_a_metric_are_what_it_is_made_of(tmp_path: Path) -> None:
    assert {"_info", "_compute"} <= vars(Rouge).keys() and issubclass(Rouge, evaluate.Metric)
    metric = Rouge(cache_dir=str(tmp_path / "scratch"), keep_in_memory=True)
    found: Any = metric.compute(predictions=["a b", "c"], references=[["a b"], ["d", "e"]])
    assert found["rouge1"] == [1.0, 0.0]


def test_protocol_not_known_is_said_by_fsspec() -> None:
    with pytest.raises(ValueError, match="not known"):
        fsspec.get_filesystem_class("nosuch")
    with pytest.raises(UserError, match="fsspec knows no nosuch://"):
        places.check_protocol("nosuch://a/b.jsonl", "data.path")


def test_url_to_fs_makes_a_file_system_anew_and_keeps_no_listing() -> None:
    """skip_instance_cache and use_listings_cache: what changed since the last look is seen."""
    first, path = fsspec.core.url_to_fs("file:///tmp", skip_instance_cache=True, use_listings_cache=False)
    second, _ = fsspec.core.url_to_fs("file:///tmp", skip_instance_cache=True, use_listings_cache=False)
    assert first is not second and path == "/tmp"
    assert fsspec.core.url_to_fs("file:///tmp")[0] is fsspec.core.url_to_fs("file:///tmp")[0]
    assert first.dircache.use_listings_cache is False


def test_info_of_a_file_system_has_size_and_type(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    system = fsspec.filesystem("file")
    assert (system.info(str(tmp_path / "file"))["size"], system.info(str(tmp_path))["type"]) == (4, "directory")
    assert system.glob(f"{tmp_path}/*", detail=True)[str(tmp_path / "file")]["type"] == "file"
    assert system.unstrip_protocol("/a") == "file:///a"


def test_local_entry_not_found_is_said_of_a_model_that_is_not_here() -> None:
    with pytest.raises(errors.LocalEntryNotFoundError):
        snapshot_download("owner/model", local_files_only=True)


def test_offline_mode_and_endpoint_are_in_the_constants() -> None:
    assert constants.is_offline_mode() is True  # tests/conftest.py
    assert constants.ENDPOINT.startswith("http") and constants.HF_HUB_CACHE
    assert issubclass(errors.OfflineModeIsEnabled, ConnectionError)


def test_response_of_a_hub_error_has_the_status() -> None:
    import httpx

    response = httpx.Response(403, request=httpx.Request("GET", "https://host/a"))
    assert http_status(errors.HfHubHTTPError("refused", response=response)) == 403
