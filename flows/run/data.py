"""Before training: checks how many rows were lost, and shows the data as it will be learnt."""

from collections.abc import Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.config import TrainingConfig
from tasks.errors import UserError
from tasks.report.data import lengths
from tasks.report.report import picture
from tasks.store.artifact import ArtifactRef
from tasks.store.facts import LedgerFacts
from tasks.text import code
from tasks.tokenization import preview, statistics
from tasks.tokenization.facts import TokenFacts


def check_losses(stages: list[ArtifactRef], budget: float) -> None:
    """Compare the number of rows lost in all data stages with the number of rows in the source.

    Raises:
        UserError: more than the budget (a fraction of 1) is lost; the first five rows are named.
    """
    facts = [stage.facts(LedgerFacts) for stage in stages]
    lost = sum(each.lost for each in facts)
    total = facts[0].rows + facts[0].lost
    if lost > budget * total:
        first = "; ".join([row for each in facts for row in each.first_lost][:5])
        ledgers = [str(stage.path / "ledger.parquet") for stage, each in zip(stages, facts, strict=True) if each.lost]
        raise UserError(
            f"{lost:,} of {total:,} rows are lost, more than data.max_lost_share = {budget:g} allows. "
            f"The first: {first}. All of them: {', '.join(ledgers)}"
        )


def check_removed(changes: dict[str, Any], most: float) -> None:
    """Compare the number of rows removed since the version named in `changes` with the number of its rows.

    Raises:
        UserError: more than the share `most` (a fraction of 1) was removed.
    """
    before = changes["removed"] + changes["changed"] + changes["same"]
    if changes["removed"] > most * before:
        raise UserError(
            f"{changes['removed']:,} of the {before:,} rows of {changes['since']} are gone from the source, more than "
            f"data.max_removed_share = {most:g} allows. If that is meant, run once with --data.max_removed_share 1."
        )


def check_sides(tokens: ArtifactRef) -> None:
    """Check that both splits have rows, before hours of training.

    Raises:
        UserError: one of them has none.
    """
    facts = tokens.facts(TokenFacts)
    for rows, name in ((facts.train, "training"), (facts.test, "held-out")):
        if not rows:
            raise UserError(f"No {name} row is left after tokenization; the ledgers name the reason for each row.")


def show_data(stages: Mapping[str, ArtifactRef], training: TrainingConfig, key: str) -> None:
    """Log one row and how full forward passes will be, and create an artifact. Cheap, so cached runs do it, too.

    Args:
        stages: the references of download, format and tokenize.
        key: of the artifact.
    """
    tokens = stages["tokenize"]
    numbers = statistics.read_statistics(tokens.path)
    shown = lengths(numbers, training)
    for line in (*preview.lines(tokens.path), shown["packing"]):
        get_run_logger().info(line)
    facts = {name: stage.facts(LedgerFacts) for name, stage in stages.items()}
    lost = [code(row) for each in facts.values() for row in each.first_lost][:5]
    parts = [
        "## Rows\n",
        "| stage | handed on | lost | left out | shortened |\n|---|---:|---:|---:|---:|",
        *(f"| {name} | {f.rows:,} | {f.lost:,} | {f.left_out:,} | {f.changed:,} |" for name, f in facts.items()),
        *(["\nThe first that were lost:\n", *(f"- {row}" for row in lost)] if lost else []),
        "\n## Tokens\n",
        *statistics.markdown(numbers),
        f"\n{shown['packing']}\n",
        *(f"**{chart.title}** by length\n\n{picture(chart)}\n" for chart in shown["charts"]),
        "## Training rows as they are learnt\n",
        *preview.markdown(tokens.path),
    ]
    create_markdown_artifact("\n".join(parts), key=key, description="What is learnt, how long rows are, what is lost")
