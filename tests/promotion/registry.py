"""A registry with published versions, for tests."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.evaluation.facts import EvaluationFacts
from tasks.publishing.facts import VersionFacts
from tasks.publishing.registry import add_version
from tasks.publishing.task import write_sums
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef
from tasks.store.root import store_root
from tests.tiny import noted

BASE = BaseModelRef(
    folder="/nowhere", digest="b" * 64, tokenizer_digest="t", source="owner/base", revision="", max_length=512
)


def folder() -> Path:
    return store_root() / "registry" / "adapter"


def publish(weights: str, loss: float = 2.0) -> ArtifactRef:
    """The next version; what it is made of is told by `weights`."""

    def write(aside: Path, version: str) -> VersionFacts:
        (aside / "adapter_model.safetensors").write_text(weights)
        write_sums(aside)
        score = {"metric": "loss", "rows": 60, "base": 3.0, "tuned": loss, "difference": loss - 3, "low": -1, "high": 0}
        return noted(VersionFacts, name="adapter", version=version, scores=[score])

    made_from = {"adapter": weights, "model": BASE.digest}
    identity = Identity(stage="publish", inputs=made_from, config={"source": BASE.source, "revision": ""})
    return add_version(identity, folder(), write)


def scored(
    rows: list[dict[str, Any]], name: str = "scores", left_out: str = "", watched: list[dict[str, Any]] | None = None
) -> ArtifactRef:
    """What evaluation leaves: rows with their per-row scores, and those of watch sets."""
    rows = [
        {"id": f"r{n:03d}", "group": None, "prompt": f"p{n}", "references": ["r"]} | row for n, row in enumerate(rows)
    ]

    def write(aside: Path) -> EvaluationFacts:
        pq.write_table(pa.Table.from_pylist(rows), aside / "predictions.parquet")
        pq.write_table(pa.Table.from_pylist(watched or []), aside / "watched.parquet")
        return noted(EvaluationFacts, rows=len(rows), champion_left_out=left_out)

    return produce(Identity(stage="evaluate", config={"name": name}), write)
