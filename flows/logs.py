"""What a terminal and the UI show: progress and mistakes in one sentence, not other people's chatter."""

import logging

from tasks.errors import UserError
from tasks.store.manifest import DamagedArtifact
from tasks.text import visible, visible_lines


class Readable(logging.Filter):
    """A mistake of the user or a damaged file is one sentence, without the stack; what is quoted stays text."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, UserError | DamagedArtifact):
            record.msg, record.args = str(error), ()
            record.exc_info = record.exc_text = None
        elif record.exc_info:
            record.exc_text = visible_lines(logging.Formatter().formatException(record.exc_info))
        lines = record.levelno > logging.INFO  # only errors have lines of their own
        record.msg, record.args = (visible_lines if lines else visible)(record.getMessage()), ()
        return True


def readable_logs() -> None:
    """Install the filter on the loggers of flow and task runs."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, Readable) for f in logger.filters):
            logger.addFilter(Readable())
