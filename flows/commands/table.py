"""Prints a summary or a plan in the terminal."""

import os
import sys
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from flows.run.plan import Planned
from flows.run.summary import parts
from tasks.store.facts import Facts
from tasks.text import visible


class _Expected(Facts):
    """Facts that the table shows, if the stage has them."""

    rows: int | None = None
    tokens: int | None = None
    peak_memory_bytes: int | None = None


def as_wide_as_needed() -> Console:
    """A console as wide as the terminal; tables that are piped are not folded."""
    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 1000)


def show(summary: dict[str, Any], console: Console | None = None) -> None:
    """Print outcome, scores, stages, and the paths of report and adapter."""
    console = console or as_wide_as_needed()
    if summary["outcome"] == "skipped":
        console.print(Text(summary["said"], "bold"), soft_wrap=True)
        return
    for part in parts(summary):
        console.print(Text(part) if isinstance(part, str) else table_of(part), soft_wrap=isinstance(part, str))
    console.print(Text(f"{summary['said']}. {summary['verdict']}", "bold"), soft_wrap=True)
    published = summary["published"]
    minutes, seconds = divmod(round(summary["seconds"]), 60)
    for line in (
        f"time     {f'{minutes:,} min ' if minutes else ''}{seconds} s",
        f"report   {summary['report']}",
        f"adapter  {published['path']}  ({published['name']} {published['version']})",
    ):
        console.print(Text(visible(line)), soft_wrap=True)


def table_of(lines: list[list[str]], justify: JustifyMethod = "right") -> Table:
    """Lines of cells under a line of titles. `justify`: of all columns but the first."""
    table = Table(*lines[0])
    for column in table.columns[1:]:
        column.justify = justify
    for line in lines[1:]:
        table.add_row(*map(Text, line))
    return table


def show_planned(stages: list[Planned], console: Console | None = None) -> None:
    """Print a plan. Numbers are those of the reused result, or of the latest earlier one (marked ~)."""
    console = console or as_wide_as_needed()
    lines = [["stage", "plan", "rows", "tokens", "time", "memory", "disk"]]
    for planned in stages:
        last, about = planned.last, "" if planned.reused else "~"
        noted = last.facts(_Expected) if last else _Expected()
        lines.append(
            [
                planned.stage,
                "reused" if planned.reused else "will run",
                f"{about}{noted.rows:,}" if noted.rows is not None else "",
                f"{about}{noted.tokens:,}" if noted.tokens is not None else "",
                f"~{last.seconds:.0f} s" if last and not planned.reused else "",
                f"{about}{noted.peak_memory_bytes / 2**30:.1f} GiB" if noted.peak_memory_bytes else "",
                f"{about}{sum(file.size for file in last.files.values()) / 2**20:.1f} MiB" if last else "",
            ]
        )
    console.print(table_of(lines))
    for planned in stages:
        if planned.why:
            console.print(Text(visible(f"{planned.stage} will run: {planned.why}")), soft_wrap=True)
