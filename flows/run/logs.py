"""Readable logs: progress bars, and a user's mistake as one sentence without a stack trace."""

import logging

from flows.flow_run import Progress
from tasks.errors import UserError
from tasks.process.failures import disk_trouble
from tasks.store.manifest import DamagedArtifact
from tasks.text import visible, visible_lines


class Readable(logging.Filter):
    """Logs mistakes, damaged files and disk trouble as a sentence without a stack trace; escapes what messages quote.

    `command_tells`: the command prints the mistake as its last line, so the log leaves it out.
    """

    command_tells = False

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error and (isinstance(error, UserError | DamagedArtifact) or disk_trouble(error)):
            record.msg, record.args = disk_trouble(error) or str(error), ()
            record.exc_info = record.exc_text = None
        elif record.exc_info:
            record.exc_text = visible_lines(logging.Formatter().formatException(record.exc_info))
        lines = record.levelno > logging.INFO  # only errors may have several lines
        record.msg, record.args = (visible_lines if lines else visible)(record.getMessage()), ()
        if record.msg.startswith("Finished in state ") and (
            self.command_tells or f"{UserError.__name__}: " in record.msg
        ):
            record.msg = record.msg.partition("(")[0]  # its sentence was logged already
        return not (self.command_tells and isinstance(error, UserError))


def readable_logs() -> None:
    """Install the filter, and the progress bars of the UI, on the loggers of flow and task runs."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, Readable) for f in logger.filters):
            logger.addFilter(Readable())
            logger.addHandler(Progress())
