"""The end of a run in the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show(summary: dict[str, Any], console: Console | None = None) -> None:
    """Print stages, scores, and where report and adapter are."""
    console = console or Console()
    stages = Table("stage", "outcome", "seconds", "rows", title="stages", title_justify="left")
    for column in stages.columns[2:]:
        column.justify = "right"
    for name, stage in summary["stages"].items():
        stages.add_row(name, stage["outcome"], f"{stage['seconds']:.1f}", f"{stage['rows']:,}" if stage["rows"] else "")
    scores = Table("metric", "base", "tuned", "difference", "interval", title="held-out rows", title_justify="left")
    for column in scores.columns[1:]:
        column.justify = "right"
    for name, s in summary["scores"].items():
        interval = f"{s['low']:+.3f} to {s['high']:+.3f}"
        scores.add_row(name, f"{s['base']:.3f}", f"{s['tuned']:.3f}", f"{s['difference']:+.3f}", interval)
    console.print(stages, scores)
    published = summary["published"]
    console.print(f"report   {summary['report']}", soft_wrap=True, highlight=False)
    console.print(
        f"adapter  {published['path']}  ({published['name']} {published['version']})", soft_wrap=True, highlight=False
    )
