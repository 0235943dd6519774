"""How a stage is called: with the run's timeouts, and new attempts after failures that pass by themselves."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from tasks.config import ExecutionConfig
from tasks.process.failures import is_transient

P = ParamSpec("P")
R = TypeVar("R")
JITTER = 0.3
TIMEOUTS = {
    "ask the hub": "prepare",
    "download": "prepare",
    "compare rows": "prepare",
    "format prompts": "prepare",
    "tokenize": "prepare",
    "train": "train",
    "evaluate": "evaluate",
    "publish": "publish",
}


def patient(stage: Task[P, R], execution: ExecutionConfig) -> Callable[P, R]:
    """The same task with timeout and retries as the run's `execution` fields ask."""
    options = stage.with_options(
        retries=execution.retries,
        retry_delay_seconds=exponential_backoff(execution.retry_seconds),
        retry_jitter_factor=JITTER,
        retry_condition_fn=_may_pass,
        timeout_seconds=60 * getattr(execution, f"{TIMEOUTS[stage.name]}_timeout_minutes"),
    )
    return cast(Callable[P, R], options)


def _may_pass(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, BaseException) and is_transient(state.data)
