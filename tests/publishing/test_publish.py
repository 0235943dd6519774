"""What is published is what was trained, to the byte, and nothing else."""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.config import FormattingConfig, PublishingConfig, TrainingConfig
from tasks.evaluation.facts import EvaluationFacts
from tasks.formatting.facts import PromptFacts
from tasks.publishing import task as publishing
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.identity import Identity, installed
from tasks.store.manifest import DamagedArtifact
from tasks.store.model import BaseModelRef
from tasks.tokenization.facts import TokenFacts
from tasks.training.facts import TrainingFacts
from tests.tiny import noted

HEALTH = {"never_ending": {"base": 0.5, "tuned": 0.125}}
SCORE = {"metric": "rougeL", "rows": 60, "base": 0.1, "tuned": 0.3, "difference": 0.2, "low": 0.15, "high": 0.25}
TRAINING = Identity(stage="train", config=TrainingConfig(quantization="none").model_dump(), inputs={"tokens": "0" * 64})


def trained(folder: Path) -> TrainingFacts:
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_text("weights")
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return noted(TrainingFacts)


@pytest.fixture
def inputs(store: Path, tiny_model: Path) -> tuple[Any, ...]:
    adapter = produce(TRAINING, trained)
    evaluation = noted(EvaluationFacts, rows=60, confidence=0.95, scores=[SCORE], health=HEALTH, stop=[1])

    def scored(folder: Path) -> EvaluationFacts:
        pq.write_table(pa.table({"id": ["r1"]}), folder / "predictions.parquet")
        return evaluation

    asked = Identity(stage="evaluate", config={"max_new_tokens": 4}, libraries=installed(*publishing.LIBRARIES))
    scores = produce(asked, scored)
    tokens = produce(Identity(stage="tokenize"), lambda folder: noted(TokenFacts, prefix=[0], limit=512))
    formatting = FormattingConfig().model_dump()
    prompts = produce(
        Identity(stage="format", config=formatting), lambda folder: noted(PromptFacts, ending="\n\n### End")
    )
    return adapter, scores, tokens, prompts, BaseModelRef.of(tiny_model, "owner/base", "")


def publish(inputs: tuple[Any, ...]) -> ArtifactRef:
    from prefect.logging import disable_run_logger

    with disable_run_logger():
        return publishing.publish.fn(*inputs, PublishingConfig())


def test_files_that_training_did_not_write_are_not_published(inputs: Any) -> None:
    (inputs[0].path / "adapter" / "pytorch_model.bin").write_text("a pickle")
    version = publish(inputs).path
    assert not (version / "pytorch_model.bin").exists()
    assert "pytorch_model.bin" not in (version / "SHA256SUMS").read_text()


@pytest.mark.parametrize("when", ["before", "while it is copied", "after"])
def test_an_adapter_that_changed_after_training_is_never_published(
    inputs: Any, store: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    adapter = inputs[0]
    weights = adapter.path / "adapter" / "adapter_model.safetensors"
    copy, card = shutil.copyfile, publishing.model_card

    def while_copied(source: Path, target: Path) -> None:
        if source == weights:
            weights.write_text("WEIGHTS")
        copy(source, target)
        if source == weights:
            copy(store / "whole", weights)

    def after(**parts: Any) -> str:
        weights.write_text("WEIGHTS")
        return card(**parts)

    if when == "before":
        weights.write_text("WEIGHTS")
    elif when == "after":
        monkeypatch.setattr(publishing, "model_card", after)
    else:
        copy(weights, store / "whole")
        monkeypatch.setattr(shutil, "copyfile", while_copied)
    with pytest.raises(DamagedArtifact, match=r"adapter_model\.safetensors has changed"):
        publish(inputs)
    assert list((store / "registry").glob("adapter/v*")) == []
    monkeypatch.undo()
    monkeypatch.setenv("QLORA_FLOW_STORE", str(store))
    shutil.rmtree(adapter.path)
    again = produce(TRAINING, trained)
    assert (publish((again, *inputs[1:])).path / "adapter_model.safetensors").read_text() == "weights"
