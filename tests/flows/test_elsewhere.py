"""Training and evaluation on another machine, whose store is another folder of this test."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed, Failed

from flows import elsewhere
from flows.config_file import load
from flows.retrain import retrain
from tasks.errors import UserError
from tasks.evaluation.facts import EvaluationFacts
from tasks.store.manifest import read_manifest
from tests.tiny import make_rows, write_jsonl

pytestmark = pytest.mark.usefixtures("prefect_server", "children_here", "remote")


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("QLORA_FLOW_REMOTE", "memory://elsewhere")
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def groups(tmp_path: Path, tiny_model: Path, store: Path) -> dict[str, Any]:
    file = tmp_path / "config.yaml"
    file.write_text(
        f"""
data: {{path: {write_jsonl(tmp_path / "rows.jsonl", make_rows(43))}}}
model: {{base: {tiny_model}}}
training: {{lora_r: 4, max_steps: 2}}
evaluation: {{max_new_tokens: 2}}
execution: {{gpu_deployment: gpu-stage/gpu}}
"""
    )
    return dict(load(file, {}))


def ended(state: Any) -> FlowRun:
    return FlowRun(flow_id=uuid4(), state=state, state_name=state.name)


def test_the_champion_is_compared_there_and_nothing_else_is_computed(
    groups: dict[str, Any], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, changed = tmp_path / "there", {}

    def run_deployment(name: str, parameters: dict[str, Any], **_: Any) -> FlowRun:
        """What is deployed runs in this process."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("QLORA_FLOW_STORE", str(there))
            parameters["training"] |= changed
            return ended(elsewhere.gpu_stage(**parameters, return_state=True))

    monkeypatch.setattr(elsewhere, "run_deployment", run_deployment)
    retrain(**groups)
    groups["training"] = groups["training"].model_copy(update={"learning_rate": 1e-3})
    changed["learning_rate"] = 1.0
    with pytest.raises(UserError, match="This machine would compute another result"):
        retrain(**groups)
    changed.clear()
    summary = retrain(**groups)
    assert summary["published"]["version"] == "v0002"
    for stage in ("train", "evaluate"):
        results = [{path.name for path in place.glob(f"artifacts/{stage}-*")} for place in (store, there)]
        assert len(results[0]) == 2 and results[0] == results[1]
    start = {"start_from": "champion", "learning_rate": 2e-3}
    groups["training"] = groups["training"].model_copy(update=start)
    continued = read_manifest(Path(retrain(**groups)["stages"]["train"]["path"]))
    assert (there / "artifacts" / continued.key).exists() and continued.identity.inputs["start"]
    facts = read_manifest(Path(summary["stages"]["evaluate"]["path"])).facts(EvaluationFacts)
    assert facts.champion and not facts.champion_left_out and not facts.unknown
    assert not [*store.glob("work/*"), *there.glob("registry")]


@pytest.mark.parametrize(
    ("outcome", "sentence"),
    [
        (ObjectNotFound(Exception()), "the Prefect server has no deployment gpu-stage/gpu"),
        (Failed(message="no memory"), "train on gpu-stage/gpu ended as Failed: no memory"),
        (Completed(), "memory://elsewhere lacks the result"),
    ],
)
def test_a_fault_of_the_other_machine_is_one_sentence(
    groups: dict[str, Any], monkeypatch: pytest.MonkeyPatch, outcome: Any, sentence: str
) -> None:
    def run_deployment(*_: Any, **__: Any) -> FlowRun:
        if isinstance(outcome, Exception):
            raise outcome
        return ended(outcome)

    monkeypatch.setattr(elsewhere, "run_deployment", run_deployment)
    with pytest.raises(UserError, match=sentence):
        retrain(**groups)


@pytest.mark.parametrize("key", ["../../outside", "/etc", "train-0", "train-" + 32 * "g"])
def test_a_key_that_no_result_has_is_refused(groups: dict[str, Any], key: str) -> None:
    parameters = {"stage": "train", "key": "train-" + 32 * "0", "made": [key], "model": {"base": "x"}}
    rest = {group: groups[group] for group in ("training", "evaluation", "execution")}
    state = elsewhere.gpu_stage(**parameters, **rest, return_state=True)
    assert state.is_failed() and "is wrong: string should match pattern" in state.message
