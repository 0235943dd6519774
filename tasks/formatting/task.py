"""Stage 2: rows become prompts and answers."""

from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from tasks.config import FormattingConfig
from tasks.formatting.identity import identity
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.caching import cached
from tasks.store.model import BaseModelRef


@task(name="format prompts", **cached(identity))
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
    info = prompts.info
    log(
        f"{prompts.rows:,} prompts, {info['lost']:,} rows lost, "
        f"{info['leaks'] + info['near_leaks']:,} left out as copies of held-out rows; "
        f"{info['duplicates']:,} repeat another row of their side, {info['near_copies']:,} nearly; "
        f"{info['shared_prompts']:,} share a held-out prompt"
    )
    if info["changed"]:
        log(
            f"{info['changed']:,} conversations are not learnt as the rows have them: an earlier answer that the chat "
            "template rewrites, or words that it does not write; the ledger has each"
        )
    return prompts
