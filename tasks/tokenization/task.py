"""Stage 3: prompts become token ids and labels."""

from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from tasks.config import TokenizationConfig
from tasks.formatting.facts import PromptFacts
from tasks.store.artifact import ArtifactRef, produce
from tasks.store.caching import cached
from tasks.store.model import BaseModelRef
from tasks.tokenization.identity import identity


@task(name="tokenize", **cached(identity))
def tokenize(prompts: ArtifactRef, model: BaseModelRef, config: TokenizationConfig) -> ArtifactRef:
    """prompts.parquet → tokens.parquet (id, split, input_ids, labels), statistics.json and preview.json."""
    from tasks.formatting.schema import PROMPTS
    from tasks.tokenization.encode import write_tokens
    from tasks.tokenization.statistics import lines, read_statistics

    log = get_run_logger().info
    limit = min(config.max_length, model.max_length)
    tokens = produce(
        identity(prompts, model, config),
        lambda folder: write_tokens(
            prompts.path / PROMPTS,
            prompts.facts(PromptFacts).special_tokens,
            Path(model.folder),
            limit,
            config,
            folder,
            log,
        ),
        log,
        (prompts, model),
    )
    for line in lines(read_statistics(tokens.path)):
        log(line)
    return tokens
