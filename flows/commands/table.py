"""Prints a summary or a plan in the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.run.changes import sentence
from flows.run.plan import Planned
from flows.run.summary import scored, trained
from tasks.evaluation import tables
from tasks.store.facts import Facts
from tasks.text import visible


class _Expected(Facts):
    """Facts that the table shows, if the stage has them."""

    rows: int | None = None
    tokens: int | None = None
    peak_memory_bytes: int | None = None


def show(summary: dict[str, Any], console: Console | None = None) -> None:
    """Print stages, scores, and the paths of report and adapter."""
    console = console or Console()
    if summary["outcome"] == "skipped":
        console.print(summary["said"], style="bold", soft_wrap=True, highlight=False)
        return
    stages = Table("stage", "outcome", "seconds", "rows", title="stages", title_justify="left")
    for column in stages.columns[2:]:
        column.justify = "right"
    for name, stage in summary["stages"].items():
        stages.add_row(name, stage["outcome"], f"{stage['seconds']:.1f}", f"{stage['rows']:,}" if stage["rows"] else "")
    scores = _numbers(tables.score_table(*scored(summary)), "held-out rows")
    watch = [_numbers(tables.score_table(summary["watch"], scored(summary)[1]), "rows of other tasks")]
    answers = _numbers(tables.health_table(summary["health"]), "shares; length: over the reference's")
    console.print(stages, scores, *(watch if summary["watch"] else []), answers)
    console.print(f"{summary['said']}. {summary['verdict']}", style="bold", soft_wrap=True, highlight=False)
    console.print(trained(summary["training"]), soft_wrap=True, highlight=False)
    if summary["changes"]:
        console.print(Text(sentence(summary["changes"])), soft_wrap=True)
    published = summary["published"]
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    for line in (
        f"time     {f'{minutes:,} min ' if minutes else ''}{seconds} s",
        f"report   {summary['report']}",
        f"adapter  {published['path']}  ({published['name']} {published['version']})",
    ):
        console.print(Text(visible(line)), soft_wrap=True)


def _numbers(lines: list[list[str]], title: str) -> Table:
    table = Table(*lines[0], title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for line in lines[1:]:
        table.add_row(*line)
    return table


def show_planned(stages: list[Planned], console: Console | None = None) -> None:
    """Print a plan. Numbers are those of the reused result, or of the latest earlier one (marked ~)."""
    console = console or Console()
    table = Table("stage", "plan", "rows", "tokens", "time", "memory", "disk")
    for column in table.columns[2:]:
        column.justify = "right"
    for planned in stages:
        last, about = planned.last, "" if planned.reused else "~"
        noted = last.facts(_Expected) if last else _Expected()
        table.add_row(
            planned.stage,
            "reused" if planned.reused else "will run",
            f"{about}{noted.rows:,}" if noted.rows is not None else "",
            f"{about}{noted.tokens:,}" if noted.tokens is not None else "",
            f"~{last.seconds:.0f} s" if last and not planned.reused else "",
            f"{about}{noted.peak_memory_bytes / 2**30:.1f} GiB" if noted.peak_memory_bytes else "",
            f"{about}{sum(file.size for file in last.files.values()) / 2**20:.1f} MiB" if last else "",
        )
    console.print(table)
    for planned in stages:
        if planned.why:
            console.print(Text(visible(f"{planned.stage} will run: {planned.why}")), soft_wrap=True)
