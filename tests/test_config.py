"""Settings that another setting would leave without effect are refused, by name; their defaults never are."""

import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from tasks.config import METRICS, TRUSTED, EvaluationConfig, TrainingConfig

IN_4_BITS = "quant_type and training.double_quant need a base in 4 bits"
ROWS = "set training.validation_share"


@pytest.mark.parametrize(
    ("wrong", "right", "sentence"),
    [
        ({"quantization": "none", "quant_type": "fp4"}, {"quant_type": "fp4"}, IN_4_BITS),
        ({"quantization": "none", "double_quant": True}, {"double_quant": True}, IN_4_BITS),
        ({"max_steps": 100, "epochs": 3}, {"epochs": 3}, "max_steps and training.epochs both say"),
        (
            {"target_modules": ["all-linear", "q_proj"]},
            {"target_modules": ["k_proj", "q_proj"]},
            "all-linear stands for every linear layer",
        ),
        (
            {"processes": 8, "batch_size": 4},
            {"processes": 8, "batch_size": 8},
            "training.processes 8 leaves processes without a row of a step's 4",
        ),
        ({"patience": 2}, {"patience": 2, "validation_share": 0.1}, ROWS),
        ({"validation_steps": 10}, {"validation_steps": 10, "validation_share": 0.1}, ROWS),
        ({"sharding": "always"}, {"sharding": "always", "processes": 2}, "set training.processes to 2 or more"),
        (
            {"sharding": "always", "processes": 2, "dora": True},
            {"processes": 2, "dora": True},
            "set training.dora to false",
        ),
        (
            {"sharding": "always", "processes": 2, "compile": "always"},
            {"processes": 2, "compile": "always"},
            "set training.compile to auto or never",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(wrong: dict[str, Any], right: dict[str, Any], sentence: str) -> None:
    TrainingConfig(**right)
    with pytest.raises(ValidationError) as caught:
        TrainingConfig(**wrong)
    assert sentence in str(caught.value)


def test_all_of_them_are_named() -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig(max_steps=5, epochs=2, patience=1)
    assert ROWS in str(caught.value) and "training.epochs" in str(caught.value)


@pytest.mark.parametrize("fields", [{"quantization": "none"}, {"max_steps": 5}, {"epochs": 2}])
def test_a_configuration_read_back_with_all_its_fields_is_the_same(fields: dict[str, Any]) -> None:
    config = TrainingConfig(**fields)
    assert TrainingConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        (["rougel"], "there is no such metric (did you mean rougeL?)"),
        (["ROUGE-2"], "did you mean rouge2?"),
        (["chrF++"], "did you mean chrf?"),
        (["f1"], "there is no such metric"),
        (["bleu"], "there is no such metric"),
        (["a:b:c"], "as package.module:function"),
        (["os.system:"], "as package.module:function"),
        (["rouge1", "chrf", "rouge1"], "rouge1 is given twice"),
        ([], "at least 1 item"),
    ],
)
def test_a_metric_that_is_none_is_refused(metrics: list[str], sentence: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EvaluationConfig.model_validate({"metrics": metrics}, context=TRUSTED)
    assert sentence in str(caught.value)


def test_code_is_named_by_a_file_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"metrics": ["rougeL", "package.module:function"]}
    assert EvaluationConfig.model_validate(own, context=TRUSTED).metrics == own["metrics"]
    with pytest.raises(ValidationError, match="a metric of your own is code"):
        EvaluationConfig.model_validate(own)
    monkeypatch.setattr("tasks.config.metrics.PERMITTED", ["package.module:function"])
    assert EvaluationConfig.model_validate(own).metrics == own["metrics"]


def test_the_environment_can_permit_a_function_to_the_form() -> None:
    shown = "from tasks.config import EvaluationConfig as C; print(C.model_json_schema()['properties']['metrics'])"
    environment = {**os.environ, "QLORA_FLOW_METRICS": "judge:tone, judge:facts"}
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True, env=environment)
    assert "'chrf', 'judge:tone', 'judge:facts']" in done.stdout


def test_the_form_offers_the_metrics_there_are() -> None:
    assert EvaluationConfig.model_json_schema()["properties"]["metrics"]["items"]["enum"] == [*METRICS]
