"""What the summary says of a stage's time."""

import time
from pathlib import Path

import pytest

from flows.run.summary import summarize
from tasks.evaluation.facts import EvaluationFacts
from tasks.evaluation.tables import verdict
from tasks.promotion.schema import Decision
from tasks.publishing.facts import VersionFacts
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.facts import Facts
from tasks.store.identity import Identity
from tasks.training.facts import TrainingFacts
from tests.tiny import Rows, noted

KEPT = Decision(outcome="kept", sentence="Kept v0006: v0007 is no better.", version="v0007", champion="v0006")


def made(stage: str, seconds: float, facts: Facts = Rows()) -> ArtifactRef:
    def write(folder: Path) -> Facts:
        time.sleep(seconds)
        (folder / "file").write_text(stage)
        return facts

    return produce(Identity(stage=stage), write)


@pytest.mark.parametrize(
    ("low", "high", "rows", "said"),
    [
        (0.01, 0.2, 60, "Better than the base: ROUGE-L +0.100 on 60 held-out rows, interval +0.010 to +0.200."),
        (-0.1, 0.2, 60, "No better or worse than the base beyond noise: ROUGE-L +0.100 on 60"),
        (-0.2, -0.1, 60, "Worse than the base: "),
        (None, None, 1, "Undecided, since a single held-out row or group allows no interval: "),
    ],
)
def test_the_interval_decides_the_verdict(low: float | None, high: float | None, rows: int, said: str) -> None:
    score = {"rows": rows, "base": 0.1, "tuned": 0.2, "difference": 0.1, "low": low, "high": high}
    other = {**score, "metric": "rouge1", "low": 1.0, "high": 1.0}
    for metric, title in (("rougeL", "ROUGE-L"), ("mine:score", "mine:score")):
        assert verdict([{**score, "metric": metric}, other]).startswith(said.replace("ROUGE-L", title))


def test_less_loss_is_better() -> None:
    score = {"metric": "loss", "rows": 60, "base": 1.7, "tuned": 1.6, "difference": -0.1, "low": -0.2, "high": -0.05}
    assert verdict([score]) == (
        "Better than the base: held-out loss -0.100 on 60 held-out rows, interval -0.200 to -0.050 (lower is better)."
    )
    assert verdict([{**score, "difference": 0.1, "low": 0.05, "high": 0.2}]).startswith("Worse than the base: ")


@pytest.mark.usefixtures("store")
def test_converting_the_model_counts_as_download() -> None:
    rows = made("download", 0)
    began = time.monotonic()
    model = made("model", 0.2)
    stages = {
        "download": rows,
        "train": made("train", 0, noted(TrainingFacts, model=str(model.path))),
        "evaluate": made("evaluate", 0, noted(EvaluationFacts)),
        "publish": made("publish", 0, noted(VersionFacts)),
    }
    download = summarize(stages, began, Path("report.html"), {}, KEPT)["stages"]["download"]
    assert download["outcome"] == "ran"
    assert download["seconds"] >= 0.2
