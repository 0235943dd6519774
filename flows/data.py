"""Shows the data before training begins: counts of tokens, and a few rows with the part that is learnt."""

import itertools

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.config import TrainingConfig
from tasks.store.artifact import ArtifactRef
from tasks.tokenization import preview, statistics
from tasks.tokenization.fill import packing


def show_data(tokens: ArtifactRef, training: TrainingConfig, key: str) -> None:
    """Log a row and how forward passes will be filled, and leave an artifact; cheap, and the same in a cached run.

    Args:
        key: of the artifact.
    """
    numbers = statistics.read_statistics(tokens.path)
    sentence = packing(numbers, training.micro_batch_tokens, training.batch_size)
    for line in (*preview.lines(tokens.path), sentence):
        get_run_logger().info(line)
    parts = itertools.chain(
        ["## Tokens\n", *statistics.markdown(numbers), f"\n{sentence}\n"],
        ["## Training rows as they are learnt\n", *preview.markdown(tokens.path)],
    )
    create_markdown_artifact("\n".join(parts), key=key)
