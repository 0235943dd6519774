"""What the summary says of a stage's time."""

import time
from pathlib import Path
from typing import Any

import pytest

from flows.summary import summarize
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.identity import Identity


def made(stage: str, seconds: float, **info: Any) -> ArtifactRef:
    def write(folder: Path) -> dict[str, Any]:
        time.sleep(seconds)
        (folder / "file").write_text(stage)
        return info

    return produce(Identity(stage=stage), write)


@pytest.mark.usefixtures("store")
def test_converting_the_model_counts_as_download() -> None:
    rows = made("download", 0)
    began = time.monotonic()
    model = made("model", 0.2)
    stages = {
        "download": rows,
        "train": made("train", 0, model=str(model.path)),
        "publish": made("publish", 0, scores=[], name="a", version="v0001"),
    }
    download = summarize(stages, began, Path("report.html"), {})["stages"]["download"]
    assert download["outcome"] == "ran"
    assert download["seconds"] >= 0.2
