"""Stage 1: bring rows and base model to this machine."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.config import DataConfig, ModelConfig
from tasks.download.facts import RowsFacts
from tasks.download.identity import check_unchanged, difference_identity, identity, pin, rows_identity
from tasks.download.models import fetch_model
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.caching import cached
from tasks.store.model import Source

ask_hub = task(name="ask the hub", cache_policy=NO_CACHE, persist_result=False)(pin)
"""`pin` with a stage's retries. It is never cached: every run asks which commit a branch has."""


@task(name="download", **cached(identity))
def download(data: DataConfig, model: ModelConfig, replay: ArtifactRef | None = None) -> Source:
    """Rows → rows.parquet with a `split` column; base model → a folder of safetensors.

    Args:
        replay: earlier rows, of which `data.replay_share` mixes some in.
    """
    from tasks.download.rows import write_rows
    from tasks.download.schema import ROWS

    log = get_run_logger().info
    named = rows_identity(data, replay)

    def write(folder: Path) -> RowsFacts:
        facts = write_rows(data, folder, earlier=replay.path / ROWS if replay else None, log=log)
        check_unchanged(named, data, replay)
        return facts

    rows = produce(named, write, log, [replay] if replay else [])
    facts = rows.facts(RowsFacts)
    log("rows read from " + ", ".join(f"{kind} ({count:,})" for kind, count in facts.formats.items()))
    log(f"{facts.train:,} training and {facts.test:,} held-out rows, {facts.lost:,} lost, {facts.left_out:,} left out")
    for name, counts in facts.sources.items():
        log(f"{name}: {counts['read']:,} rows read, {counts['train']:,} to train on, {counts['test']:,} held out")
    return Source(rows=rows, model=fetch_model(model, log))


@task(name="compare rows", **cached(difference_identity))
def compare_rows(before: ArtifactRef, now: ArtifactRef) -> ArtifactRef:
    """Two results of download → difference.parquet; nothing else depends on it."""
    from tasks.download.difference import write_difference

    return produce(
        difference_identity(before, now),
        lambda folder: write_difference(before.path, now.path, folder),
        get_run_logger().info,
        (before, now),
    )
