"""The commands, programs and configurations that the documentation shows."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
DEPLOYMENT = "deployments/prefect.yaml"


def blocks(page: str, language: str = "") -> list[str]:
    """The fenced blocks of a page in a language; those without one hold commands, a line each."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def commands(page: str) -> list[str]:
    """The command lines of a page, without the remark behind them; in the deployment file those of its header."""
    if page == DEPLOYMENT:
        lines = [line[6:] for line in (ROOT / page).read_text().splitlines() if line.startswith("#     ")]
    else:
        lines = [
            line for language in ("", "bash", "sh") for block in blocks(page, language) for line in block.splitlines()
        ]
    return [command for line in lines if (command := re.split(r"\s+#\s", line)[0].strip())]


def spans(page: str) -> list[str]:
    """Code within the text that begins with the name of a command, and what a line of a crontab runs."""
    found = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S))
    names = ("qlora-flow ", "make ", "prefect ", "python ", "pip ", ".venv/bin/")
    scheduled = re.findall(r"&& (\.venv/bin/[^>\n]+)", "".join(blocks(page, "text")))
    return [*(span for span in found if span.startswith(names)), *scheduled]
