"""REGISTRY/<name>/README.md: which version is in use, and what was decided about each, for people."""

from tasks.promotion.champion import POINTER, champion_of
from tasks.promotion.schema import Entry
from tasks.text import visible

PAGE = "README.md"


def page(name: str, entries: list[Entry]) -> str:
    """The history as Markdown, newest first; looks are left out, since each has its decision."""
    lines = [
        f"# {name}",
        "",
        f"In use: **{champion_of(entries) or 'no version'}**. Load it from the folder `{POINTER}`, whose path stays.",
        "",
        "| when (UTC) | version | what was decided | by |",
        "|---|---|---|---|",
    ]
    for entry in reversed(entries):
        if entry.what != "look":
            cells = (entry.at[:16].replace("T", " "), entry.version, entry.said, entry.by)
            lines.append(f"| {' | '.join(visible(cell).replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
