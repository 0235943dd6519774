"""Stored answers of a version: test rows on which it is better than its base, with the losses that were measured."""

from pathlib import Path
from typing import Any

from tasks.publishing.schema import MOST_PROBES, PROBES, Probe, Probes
from tasks.store.artifact import ArtifactRef


def write_probes(folder: Path, scores: ArtifactRef, tokens: ArtifactRef, training: dict[str, Any]) -> None:
    """Write `probes.json`, with no rows where no row gained or losses were not measured.

    Args:
        training: the fields that say how the base is loaded.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from tasks.evaluation.schema import PREDICTIONS
    from tasks.tokenization.schema import IGNORE_INDEX, TOKENS

    predictions = pq.read_table(scores.path / PREDICTIONS)
    losses: dict[str, Any] = {}
    if {"base_loss", "tuned_loss"} <= set(predictions.column_names):
        rows = predictions.select(["id", "base_loss", "tuned_loss"]).to_pylist()
        rows.sort(key=lambda row: row["tuned_loss"] - row["base_loss"])
        losses = {row["id"]: row for row in rows[: 8 * MOST_PROBES] if row["tuned_loss"] < row["base_loss"]}
    chosen = (pc.field("split") == "test") & pc.field("id").isin(list(losses))
    found = (
        pq.read_table(tokens.path / TOKENS, columns=["id", "input_ids", "labels"], filters=chosen).to_pylist()
        if losses
        else []
    )
    probes = [
        Probe(
            input_ids=row["input_ids"],
            labels=row["labels"],
            base=losses[row["id"]]["base_loss"],
            tuned=losses[row["id"]]["tuned_loss"],
        )
        for row in found
        if row["labels"][0] == IGNORE_INDEX  # else evaluation put a token before the row
    ]
    probes = sorted(probes, key=lambda probe: len(probe.input_ids))[:MOST_PROBES]  # on a CPU, tokens are the time
    (folder / PROBES).write_text(Probes(training=training, rows=probes).model_dump_json() + "\n")
