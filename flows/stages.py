"""The stages of a retrain, in order. Plan, refresh, time limits and comparison of rows read this table.

A new stage is a row here and a line in flows/retrain.py. Nothing here imports Prefect: `--help` and `plan` answer fast.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.download.identity import rows_identity
from tasks.evaluation.identity import identity as evaluate_identity
from tasks.formatting.identity import identity as format_identity
from tasks.publishing.identity import identity as publish_identity
from tasks.store.artifact import ArtifactRef
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef
from tasks.tokenization.identity import identity as tokenize_identity
from tasks.training.identity import identity as train_identity

Results = Mapping[str, ArtifactRef]
Configuration = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """A row of the table.

    Args:
        name: what manifests, keys and the summary call the stage.
        identity: what decides its result, given the results of the stages before it, the base model and the
            configuration's groups.
        needs: the stage without whose result the identity is unknown; that one needs the others. Empty: none.
        limit: `execution.<limit>_timeout_minutes` is its time limit.
        rows_from: the input of its identity that leads back to the rows. Empty: none does.
        refreshable: `--refresh` may name it.
    """

    name: str
    identity: Callable[[Results, BaseModelRef, Configuration], Identity]
    needs: str
    limit: str
    rows_from: str = ""
    refreshable: bool = True


STAGES = (
    Stage("download", lambda made, model, groups: rows_identity(groups["data"]), "", "prepare"),
    Stage(
        "format",
        lambda made, model, groups: format_identity(made["download"], model, groups["formatting"]),
        "download",
        "prepare",
        "rows",
    ),
    Stage(
        "tokenize",
        lambda made, model, groups: tokenize_identity(made["format"], model, groups["tokenization"]),
        "format",
        "prepare",
        "prompts",
    ),
    Stage(
        "train",
        lambda made, model, groups: train_identity(made["tokenize"], model, groups["training"]),
        "tokenize",
        "train",
        "tokens",
    ),
    Stage(
        "evaluate",
        lambda made, model, groups: evaluate_identity(
            made["train"], made["tokenize"], made["format"], model, groups["evaluation"]
        ),
        "train",
        "evaluate",
    ),
    Stage(
        "publish",
        lambda made, model, groups: publish_identity(
            made["train"], made["evaluate"], made["format"], model, groups["publishing"]
        ),
        "evaluate",
        "publish",
        "adapter",
        refreshable=False,  # a published version is never changed
    ),
)
BY_NAME = {stage.name: stage for stage in STAGES}
REFRESHABLE = [stage.name for stage in STAGES if stage.refreshable]
