"""Time limits of stages, and retries after transient failures."""

from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from flows.stages import BY_NAME
from tasks.config import ExecutionConfig
from tasks.process.failures import is_transient

JITTER = 0.3


def options(stage: str, execution: ExecutionConfig) -> dict[str, Any]:
    """Options for `Task.with_options`, as the fields of `execution` ask for a stage."""
    return {
        "retries": execution.retries,
        "retry_delay_seconds": exponential_backoff(execution.retry_seconds),
        "retry_jitter_factor": JITTER,
        "retry_condition_fn": _is_transient,
        "timeout_seconds": 60 * getattr(execution, f"{BY_NAME[stage].limit}_timeout_minutes"),
    }


def _is_transient(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, BaseException) and is_transient(state.data)
