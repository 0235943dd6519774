"""What a terminal and a file show of a run."""

import io
import logging

import pytest
from prefect.logging.handlers import PrefectConsoleHandler

from flows.commands.bars import at_work

pytestmark = pytest.mark.usefixtures("prefect_server")
LINES = [
    ("tokenize", "tokenize: 1,024/4,096 rows · 512.0 a second · 6 s left"),
    ("tokenize", "tokenize: 4,096/4,096 rows · 512.0 a second · 0 s left"),
    ("tokenize", "Finished in state Completed()"),
    ("train", "loading the base model [4bit]"),
    ("train", "step 3/9 · loss 1.500 · grad norm 0.10 · 1,000 tokens/s · 0:06 left"),
    ("evaluate", "tuned: 2/8 answers · 1.0 a second · 6 s left"),
    ("download", "download: 5,000 rows read"),
]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def shows(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch, quiet: bool = False) -> str:
    """What is shown when a run logs `LINES` and a warning as Prefect does, and is then interrupted."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "150"), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(logging.getLogger(), "handlers", [PrefectConsoleHandler(screen)])
    log = logging.getLogger("prefect.task_runs.of_this_test")
    log.setLevel(logging.INFO)
    with pytest.raises(KeyboardInterrupt), at_work(quiet):
        for stage, line in LINES:
            log.info(line, extra={"task_run_id": f"id of {stage}", "task_name": stage})
        log.warning("the disk is slow")
        raise KeyboardInterrupt
    return screen.getvalue()


def test_a_terminal_has_bars_and_its_cursor_again(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shows(Screen(), monkeypatch)
    bars = text.replace("\x1b", "\n").splitlines()
    for words in (
        ("train", "3/9", "loss 1.500 · grad norm 0.10 · 1,000 tokens/s"),
        ("evaluate: tuned", "2/8", "answers · 1.0 a second"),
        ("download", "5000/?", "rows read"),
    ):
        assert any(all(word in bar for word in words) for bar in bars), (words, text)
    assert "loading the base model [4bit]" in text and "the disk is slow" in text
    assert "step 3/9" not in text and "left" not in text
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_a_file_has_the_last_line_of_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shows(io.StringIO(), monkeypatch)
    assert text.splitlines() == [LINES[n][1] for n in (1, 2, 3)] + ["the disk is slow"]


def test_quiet_leaves_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shows(Screen(), monkeypatch, quiet=True) == "the disk is slow\n"
