"""What a terminal and the UI show: progress and mistakes in one sentence, not other people's chatter."""

import logging

from tasks.errors import UserError
from tasks.store.manifest import DamagedArtifact


class WithoutTraceback(logging.Filter):
    """A mistake of the user or a damaged file is one sentence: drop the stack Prefect logs with it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], UserError | DamagedArtifact):
            record.msg, record.args = str(record.exc_info[1]), ()
            record.exc_info = record.exc_text = None
        return True


def quiet_user_errors() -> None:
    """Install the filter on the loggers of flow and task runs."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(f, WithoutTraceback) for f in logger.filters):
            logger.addFilter(WithoutTraceback())
