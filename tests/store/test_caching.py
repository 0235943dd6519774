"""A stored record chooses nothing: no serializer, module or class. What is no reference of ours is a cache miss."""

import base64
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect import task
from prefect.client.schemas.objects import State
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer, PickleSerializer, Serializer, UnknownSerializer
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings
from prefect.utilities.dispatch import get_registry_for_type

from tasks.store.artifact import ArtifactRef, produce
from tasks.store.caching import LARGEST_RECORD, VerifiedJSONSerializer, cached
from tasks.store.identity import Identity
from tests.tiny import Rows

ROOT = Path(__file__).parents[2]
WHO = Identity(stage="test")
MARK = "QLORA_FLOW_TEST_MARK"
MODULE = "a_module_of_nobody"


class Runs:
    """Unpickling one leaves a mark."""

    def __reduce__(self) -> Any:
        return exec, (f"import os; os.environ[{MARK!r}] = '1'",)


def write(folder: Path) -> Rows:
    (folder / "file").write_text("content")
    return Rows(rows=3)


@task(name="stage", **cached(lambda: WHO))
def stage() -> ArtifactRef:
    return produce(WHO, write)


PICKLED = base64.encodebytes(pickle.dumps(Runs())).decode()
ONES_OWN = VerifiedJSONSerializer().model_dump()
HOSTILE: dict[str, tuple[dict[str, Any] | None, str]] = {
    "pickle": ({"type": "pickle", "picklelib": "cloudpickle"}, PICKLED),
    "pickle by a module of its own": ({"type": "pickle", "picklelib": MODULE}, PICKLED),
    "no serializer": (None, PICKLED),
    "a decoder": ({"type": "json", "object_decoder": f"{MODULE}.run"}, "{}"),
    "a JSON module": ({"type": "json", "jsonlib": MODULE}, "{}"),
    "a class": ({"type": "json"}, json.dumps({"__class__": f"{MODULE}.Class", "data": {}})),
    "an exception": ({"type": "json"}, json.dumps({"__exc_type__": f"{MODULE}.Error", "message": ""})),
    "ours with a decoder": ({**ONES_OWN, "object_decoder": f"{MODULE}.run"}, "{}"),
    "ours with a class": (ONES_OWN, json.dumps({"__class__": f"{MODULE}.Class", "data": {}})),
    "compressed": ({"type": "compressed", "serializer": {"type": "pickle"}, "compressionlib": MODULE}, PICKLED),
    "compressed pickle": ({"type": "compressed/pickle"}, PICKLED),
    "unknown": ({"type": "no such serializer", "module": MODULE}, PICKLED),
    "a list": (ONES_OWN, "[]"),
    "deep": (ONES_OWN, "[" * 100_000),
    "no reference": (ONES_OWN, json.dumps({"name": "../..", "digest": 1})),
}


def record(serializer: dict[str, Any] | None, result: str) -> bytes:
    metadata = {"storage_key": "x", "prefect_version": "3", **({"serializer": serializer} if serializer else {})}
    return json.dumps({"metadata": metadata, "result": result}).encode()


@pytest.fixture
def results(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder of Prefect's records; `MODULE` can be imported, and leaves a mark when it is."""
    (tmp_path / f"{MODULE}.py").write_text(f"import os\nos.environ[{MARK!r}] = '1'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(MARK, raising=False)
    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield tmp_path / "results"
    assert MARK not in os.environ and MODULE not in sys.modules


def outcome(results: Path) -> str:
    state = stage(return_state=True)
    assert state.result() == produce(WHO, write)
    return state.name


@pytest.mark.usefixtures("prefect_server")
def test_a_record_of_ours_is_a_hit(results: Path) -> None:
    assert [outcome(results), outcome(results)] == ["Completed", "Cached"]
    assert json.loads((results / WHO.key).read_bytes())["metadata"]["serializer"] == {"type": "verified-json"}


@pytest.mark.usefixtures("prefect_server")
def test_whatever_a_record_names_is_a_miss_and_nothing_runs(results: Path) -> None:
    outcome(results)
    contents = {name: record(*named) for name, named in HOSTILE.items()}
    contents |= {"empty": b"", "no JSON": b"\xff", "a number": b"1", "old": json.dumps({"data": PICKLED}).encode()}
    found = {}
    for name, content in contents.items():
        (results / WHO.key).write_bytes(content)
        found[name] = outcome(results)
        assert outcome(results) == "Cached"
    assert set(found.values()) == {"Completed"}, found


@pytest.mark.usefixtures("prefect_server")
def test_a_huge_record_is_not_read(results: Path) -> None:
    outcome(results)
    with (results / WHO.key).open("ab") as file:
        file.write(b" " * LARGEST_RECORD)
    assert outcome(results) == "Completed"
    assert (results / WHO.key).stat().st_size < LARGEST_RECORD


@pytest.mark.parametrize("named", HOSTILE.values(), ids=HOSTILE)
def test_what_a_server_says_of_a_run_chooses_nothing_either(results: Path, named: tuple[Any, str]) -> None:
    serializer, result = named
    results.mkdir()
    (results / "theirs").write_bytes(record(serializer, result))
    said = {"storage_key": str(results / "theirs"), **({"serializer": serializer} if serializer else {})}
    with pytest.raises((RuntimeError, ValueError)):
        State.model_validate({"type": "COMPLETED", "data": said}).result(retry_result_failure=False)


def test_a_serializer_made_before_is_none_of_prefects_either(results: Path) -> None:
    code = f"""
from prefect.serializers import JSONSerializer, PickleSerializer
made = [PickleSerializer(), JSONSerializer(object_decoder="{MODULE}.run")]
import flows.retrain
for serializer in made:
    try:
        serializer.loads(b"{{}}")
    except RuntimeError as error:
        print("refused")
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.stdout == "refused\n" * 2, shown.stderr


def test_prefect_has_what_this_relies_on() -> None:
    known = get_registry_for_type(Serializer)
    assert known is not None and {"pickle", "json", "compressed", "verified-json"} <= known.keys()
    assert set(known.values()) == {VerifiedJSONSerializer, UnknownSerializer}
    assert PickleSerializer.loads is JSONSerializer.loads is UnknownSerializer.loads
    assert isinstance(ResultStore().serializer, UnknownSerializer)


def test_the_flow_keeps_no_result() -> None:
    from flows.retrain import retrain

    assert retrain.persist_result is False
    assert isinstance(retrain.result_serializer, VerifiedJSONSerializer)  # for the exceptions that Prefect keeps
    with pytest.raises(ValueError):
        VerifiedJSONSerializer().loads(VerifiedJSONSerializer().dumps(OSError("no space")))
