"""With which rows a run compares its own."""

from pathlib import Path

import pytest

from flows.run.changes import earlier_rows
from tasks.publishing.registry import add_version
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.identity import Identity
from tests.tiny import Rows


def made(stage: str, content: str, **inputs: str) -> ArtifactRef:
    def write(folder: Path) -> Rows:
        (folder / "adapter").mkdir()
        (folder / "adapter" / "file").write_text(f"{stage} {content}")
        return Rows()

    return produce(Identity(stage=stage, inputs=inputs, config={"content": content}), write)


@pytest.mark.usefixtures("store")
def test_scores_that_two_runs_share_do_not_mix_their_rows(tmp_path: Path) -> None:
    found = []
    for content in ("old", "new"):
        rows = made("download", content)
        prompts = made("format", content, rows=rows.digest)
        tokens = made("tokenize", content, prompts=prompts.digest)
        adapter = made("train", content, tokens=tokens.digest)
        scores = made("evaluate", "same", prompts=prompts.digest)
        inputs = {"scores": scores.digest, "adapter": adapter.part("adapter")}
        add_version(Identity(stage="publish", inputs=inputs), tmp_path / "demo", lambda folder, name: Rows())
        found.append(rows)
    assert earlier_rows(tmp_path / "demo", found[1]) == ("v0001", found[0])
