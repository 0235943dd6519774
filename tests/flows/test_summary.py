"""What the summary says of a stage's time."""

import time
from pathlib import Path
from typing import Any

import pytest

from flows.summary import summarize, verdict
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.identity import Identity


def made(stage: str, seconds: float, **info: Any) -> ArtifactRef:
    def write(folder: Path) -> dict[str, Any]:
        time.sleep(seconds)
        (folder / "file").write_text(stage)
        return info

    return produce(Identity(stage=stage), write)


@pytest.mark.parametrize(
    ("low", "high", "rows", "said"),
    [
        (0.01, 0.2, 60, "Better than the base: ROUGE-L +0.100 on 60 held-out rows, interval +0.010 to +0.200."),
        (-0.1, 0.2, 60, "No better or worse than the base beyond noise: ROUGE-L +0.100 on 60"),
        (-0.2, -0.1, 60, "Worse than the base: "),
        (0.1, 0.1, 1, "Undecided, since one held-out row allows no interval: "),
    ],
)
def test_the_interval_decides_the_verdict(low: float, high: float, rows: int, said: str) -> None:
    score = {"rows": rows, "base": 0.1, "tuned": 0.2, "difference": 0.1, "low": low, "high": high}
    other = {**score, "metric": "rouge1", "low": 1.0, "high": 1.0}
    assert verdict([other, {**score, "metric": "rougeL"}]).startswith(said)
    mine = said.replace("ROUGE-L", "mine:score")
    assert verdict([{**score, "metric": "mine:score"}, other]).startswith(mine)  # the first, where there is no ROUGE-L


@pytest.mark.usefixtures("store")
def test_converting_the_model_counts_as_download() -> None:
    rows = made("download", 0)
    began = time.monotonic()
    model = made("model", 0.2)
    stages = {
        "download": rows,
        "train": made("train", 0, model=str(model.path)),
        "publish": made("publish", 0, scores=[], health={}, name="a", version="v0001"),
    }
    download = summarize(stages, began, Path("report.html"), {})["stages"]["download"]
    assert download["outcome"] == "ran"
    assert download["seconds"] >= 0.2
