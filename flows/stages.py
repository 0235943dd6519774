"""The stages of a retrain, in order. Plan, refresh, time limits, comparison of rows and `make confirm` read this table.

A new stage is a row here and a line in flows/retrain.py. Its task is the one of this name in the room's task.py, beside
the identity.py of `decided_by`. Nothing here imports Prefect at once: `--help` and `plan` answer fast.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from tasks.config import ExecutionConfig
from tasks.download.identity import rows_identity
from tasks.evaluation.identity import identity as evaluate_identity
from tasks.formatting.identity import identity as format_identity
from tasks.process.failures import is_transient
from tasks.publishing.identity import identity as publish_identity
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef
from tasks.store.root import store_root
from tasks.tokenization.identity import identity as tokenize_identity
from tasks.training.identity import identity as train_identity
from tasks.training.start import Start

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    Args:
        name: what manifests, keys and the summary call the stage.
        decided_by: returns the identity of its result. Takes the results of its inputs, the base model if there are
            inputs, and the group of the configuration that it reads.
        inputs: name of an input in its identity → the stage whose result it is. The first one leads back to the rows.
        group: of the configuration.
        limit: `execution.<limit>_timeout_minutes` is its time limit.
    """

    name: str
    decided_by: Callable[..., Identity]
    inputs: Mapping[str, str]
    group: str
    limit: str

    def identity(
        self,
        made: Mapping[str, ArtifactRef],
        model: BaseModelRef,
        groups: Mapping[str, Any],
        earlier: ArtifactRef | Start | None = None,
    ) -> Identity:
        """The identity of its result in a run, given the results of earlier stages.

        Args:
            earlier: what it reads of earlier runs: rows to mix in, weights to begin from, the champion.
        """
        read = [made[stage] for stage in self.inputs.values()]
        return self.decided_by(*read, *([model] if read else []), groups[self.group], *([earlier] if earlier else []))

    def computed(self, *decisive: Any) -> bool:
        """Whether the store has its result already; arguments as for `identity`."""
        return (store_root() / "artifacts" / self.identity(*decisive).key).exists()


ANSWERED = {"adapter": "train", "tokens": "tokenize", "prompts": "format"}
PUBLISHED = {"adapter": "train", "scores": "evaluate", "prompts": "format"}
STAGES = (
    Stage("download", rows_identity, {}, "data", "prepare"),
    Stage("format", format_identity, {"rows": "download"}, "formatting", "prepare"),
    Stage("tokenize", tokenize_identity, {"prompts": "format"}, "tokenization", "prepare"),
    Stage("train", train_identity, {"tokens": "tokenize"}, "training", "train"),
    Stage("evaluate", evaluate_identity, ANSWERED, "evaluation", "evaluate"),
    Stage("publish", publish_identity, PUBLISHED, "publishing", "publish"),
)
BY_NAME = {stage.name: stage for stage in STAGES}
REFRESHABLE = [*BY_NAME][:-1]  # a published version is never changed


def limited(task: T, execution: ExecutionConfig) -> T:
    """A task with the time limit of its stage, and retries after transient failures."""
    from prefect.tasks import exponential_backoff

    def failed_transiently(task: Any, task_run: Any, state: Any) -> bool:
        return isinstance(state.data, BaseException) and is_transient(state.data)

    given: Any = task
    stage = BY_NAME.get("publish" if given.name == "promote" else given.name, STAGES[0])
    return cast(
        T,
        given.with_options(
            retries=execution.retries,
            retry_delay_seconds=exponential_backoff(execution.retry_seconds),
            retry_jitter_factor=0.3,
            retry_condition_fn=failed_transiently,
            timeout_seconds=60 * getattr(execution, f"{stage.limit}_timeout_minutes"),
        ),
    )
