"""Stage 2: rows become prompts and answers."""

from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from tasks.config import FormattingConfig
from tasks.formatting.facts import PromptFacts
from tasks.formatting.identity import identity
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.caching import cached
from tasks.store.model import BaseModelRef


@task(name="format", **cached(identity))
def format_prompts(rows: ArtifactRef, model: BaseModelRef, config: FormattingConfig) -> ArtifactRef:
    """rows.parquet → prompts.parquet (id, split, prompt, completion, references)."""
    from tasks.download.schema import ROWS
    from tasks.formatting.prompts import write_prompts

    log = get_run_logger().info
    prompts = produce(
        identity(rows, model, config),
        lambda folder: write_prompts(rows.path / ROWS, Path(model.folder), config, folder, log),
        log,
        (rows, model),
    )
    facts = prompts.facts(PromptFacts)
    log(
        f"{facts.rows:,} prompts, {facts.lost:,} rows lost, "
        f"{facts.leaks + facts.near_leaks:,} left out as copies of held-out rows; "
        f"{facts.duplicates:,} repeat another row of their split; {facts.shared_prompts:,} share a held-out prompt"
    )
    if facts.changed:
        log(
            f"{facts.changed:,} conversations are not learnt as the rows have them: an earlier answer that the chat "
            "template rewrites, or words that it does not write; the ledger has each"
        )
    return prompts
