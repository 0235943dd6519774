"""Shows how far a run is: a bar in a terminal, one line a stage elsewhere."""

import contextlib
import logging
import re
import signal
import sys
from collections.abc import Iterator

from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.theme import Theme

from flows.flow_run import PROGRESS
from flows.server import ensure_server

TIME_LEFT = re.compile(r" · [^·]+ left$")  # of a line; the bar has its own


@contextlib.contextmanager
def at_work(quiet: bool = False) -> Iterator[None]:
    """What a command runs a flow in: a server, an end by SIGTERM, and the run's progress on the terminal.

    Args:
        quiet: only warnings and errors are shown.
    """
    # Prefect hands SIGTERM on to this handler; leaving by it ends what the run started, and says so by its status
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    ensure_server()
    handler = next((h for h in logging.getLogger().handlers if isinstance(h, PrefectConsoleHandler)), None)
    if handler is None:  # the user has another configuration of logging
        yield
        return
    bars = Bars(handler.console, quiet)
    handler.addFilter(bars)
    try:
        with bars.display():
            yield
    finally:
        handler.removeFilter(bars)


class Bars(logging.Filter):
    """Takes the lines that say how far a stage is from the log of a terminal, and moves a bar in their place.

    The bars are drawn by the console that prints the log, so that neither writes over the other.
    """

    def __init__(self, console: Console, quiet: bool) -> None:
        super().__init__()
        self.quiet, self.console = quiet, console
        self._live: Progress | None = None
        self._bars: dict[str, TaskID] = {}

    @contextlib.contextmanager
    def display(self) -> Iterator[None]:
        if self.quiet or not self.console.is_terminal or self.console.is_dumb_terminal:
            yield
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeLeft())
        first, last = TextColumn("{task.description}"), TextColumn("{task.fields[said]}")
        with (
            self.console.use_theme(Theme()),  # Prefect's console knows its own styles alone
            Progress(first, *columns, last, console=self.console, transient=True) as live,
        ):
            self.console.show_cursor(True)  # a process that is killed could not show it again
            self._live = live
            yield

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the log shows a line."""
        if record.levelno > logging.INFO:
            return True
        message, run = record.getMessage(), getattr(record, "task_run_id", None)
        said = PROGRESS.match(message)
        if self._live and run:
            if message.startswith("Finished in state "):
                if (bar := self._bars.pop(run, None)) is not None:
                    self._live.remove_task(bar)
            else:
                self._move(self._live, str(run), str(getattr(record, "task_name", "")), message, said)
        return not self.quiet and (not said or (not self._live and said[3] == said[4]))

    def _move(self, live: Progress, run: str, stage: str, message: str, said: re.Match[str] | None) -> None:
        if run not in self._bars:
            self._bars[run] = live.add_task(stage, total=None, said="")
        if not said:
            return
        done, total = (int(number.replace(",", "")) if number else None for number in said.group(3, 4))
        what = said[2] if said[2] in ("base", "champion", "tuned") else ""
        description = f"{stage}: {what}" if what else stage
        bar = self._bars[run]
        if live.tasks[live.task_ids.index(bar)].description != description:
            live.reset(bar, description=description)
        live.update(
            bar,
            refresh=True,
            completed=done,
            total=total,
            said=escape(TIME_LEFT.sub("", message[said.end() :]).strip(" ·")),
        )
