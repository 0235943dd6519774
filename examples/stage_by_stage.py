"""Every stage as a plain function call, without a Prefect server: for a notebook or a debugger.

    .venv/bin/python examples/stage_by_stage.py my.yaml

Results go to the store, where `qlora-flow run my.yaml` finds and reuses them. Training and evaluation start a child
process each, as in a run; their code is `tasks/training/worker.py` and `tasks/evaluation/worker.py`.
"""

import sys
from pathlib import Path
from typing import Any

from prefect.logging import disable_run_logger

from flows.config_file import load
from tasks.download.identity import pin
from tasks.download.task import download
from tasks.evaluation.task import evaluate
from tasks.formatting.task import format_prompts
from tasks.publishing.task import publish
from tasks.store.artifact import ArtifactRef
from tasks.tokenization.task import tokenize
from tasks.training.task import train


def main(config: Path) -> ArtifactRef:
    """Returns the published version. `.fn` is the function that a task wraps."""
    groups: dict[str, Any] = dict(load(config, {}))
    data, model = pin(groups["data"], groups["model"])  # branches of the Hub become commits
    with disable_run_logger():
        source = download.fn(data, model)
        look("rows", source.rows)
        prompts = format_prompts.fn(source.rows, source.model, groups["formatting"])
        look("prompts", prompts)
        tokens = tokenize.fn(prompts, source.model, groups["tokenization"])
        look("tokens", tokens)
        adapter = train.fn(tokens, source.model, groups["training"], groups["execution"])
        look("adapter", adapter)
        scores = evaluate.fn(adapter, tokens, prompts, source.model, groups["evaluation"], groups["execution"])
        look("scores", scores)
        version = publish.fn(adapter, scores, tokens, prompts, source.model, groups["publishing"])
        look("version", version)
    return version


def look(what: str, made: ArtifactRef) -> None:
    """Where a stage's files are; open them with pyarrow.parquet.read_table, pandas or DuckDB."""
    print(f"{what}: {made.path} ({', '.join(made.manifest.files)})")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/dialogue-summary.yaml"))
