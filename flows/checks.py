"""Checks before anything runs. All mistakes are reported at once."""

import contextlib
import os
from pathlib import Path
from typing import Any

from flows.run.continued import to_begin_from
from tasks.config import METRICS, DataConfig, PublishingConfig
from tasks.download.first_rows import columns
from tasks.download.models import BUNDLED, looks_local, present_model
from tasks.errors import UserError
from tasks.evaluation.facts import WATCH
from tasks.evaluation.identity import own_metric
from tasks.evaluation.slices import LENGTH, SHORTENED
from tasks.formatting.chat import check_chat_template
from tasks.formatting.columns import check_columns, columns_read
from tasks.model.targets import check_targets
from tasks.promotion.gate import Guard
from tasks.publishing.identity import registry_folder
from tasks.store.root import existing
from tasks.training.start import CHAMPION, NotFetched, adapter_folder


def check(groups: dict[str, Any]) -> None:
    """Check files, first rows, templates, packages and the base model on this machine. Nothing is fetched.

    Args:
        groups: the flow's parameters, as `flows.config_file.load` returns them.
    Raises:
        UserError: a line for every mistake.
    """
    mistakes = []
    for one in (_rows, _model, _metrics, _watch, _promotion, _publishing, _elsewhere):
        try:
            one(groups)
        except UserError as error:
            mistakes.append(str(error))
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))


def _rows(groups: dict[str, Any]) -> None:
    wanted = columns_read(groups["formatting"])
    if (found := columns(groups["data"], wanted)) is not None:
        check_columns(groups["formatting"], found)


def _model(groups: dict[str, Any]) -> None:
    model, training = groups["model"], groups["training"]
    base = None
    if (model.base == BUNDLED or looks_local(model)) and (base := present_model(model)):
        check_targets(Path(base.folder), training)
        if groups["formatting"].style == "chat":
            check_chat_template(Path(base.folder))
    with contextlib.suppress(NotFetched):  # fetched in the run
        folder = adapter_folder(training.start_from, local_files_only=True)
        to_begin_from(training, registry_folder(groups["publishing"]), folder, base)


def _metrics(groups: dict[str, Any]) -> None:
    for name in groups["evaluation"].metrics:
        if name not in METRICS:
            own_metric(name)


def _promotion(groups: dict[str, Any]) -> None:
    promotion, evaluation = groups["promotion"], groups["evaluation"]
    guards = [Guard.parse(guard) for guard in promotion.guards]
    for field, name in (("metric", promotion.metric), *(("guards", guard.metric) for guard in guards)):
        if name not in evaluation.metrics:
            raise UserError(
                f"promotion.{field}: {name} is not among evaluation.metrics ({', '.join(evaluation.metrics)}); add it "
                "there, or name one of those."
            )
    names = [each.name for each in evaluation.watch]
    for guard in guards:
        if guard.column not in ("", WATCH, LENGTH, SHORTENED, *evaluation.slices):
            raise UserError(
                f"promotion.guards: {guard.column} is not among evaluation.slices, so its rows are not scored apart; "
                "add it there."
            )
        if guard.column == WATCH and guard.value not in names:
            there = f"it has {', '.join(names)}" if names else "it names none"
            raise UserError(f"promotion.guards: evaluation.watch has no set called {guard.value}; {there}.")


def _watch(groups: dict[str, Any]) -> None:
    for each in groups["evaluation"].watch:
        try:
            _rows({"data": DataConfig(path=each.path), "formatting": each.formatting or groups["formatting"]})
        except UserError as error:
            raise UserError(f"evaluation.watch, {each.name}: {str(error).removeprefix('data.path: ')}") from error


def _publishing(groups: dict[str, Any]) -> None:
    publishing: PublishingConfig = groups["publishing"]
    if not (there := existing(registry_folder(publishing))).is_dir():
        raise UserError(f"publishing.registry: {there} is a file, and a registry is a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"publishing.registry: this user may not write to {there}.")
    if publishing.hub_repo:
        from huggingface_hub import get_token

        if not get_token():
            raise UserError(f"publishing.hub_repo: to upload to {publishing.hub_repo}, set HF_TOKEN to a write token.")


def _elsewhere(groups: dict[str, Any]) -> None:
    if groups["execution"].gpu_deployment:
        if not os.environ.get("QLORA_FLOW_REMOTE"):
            raise UserError("execution.gpu_deployment: set QLORA_FLOW_REMOTE, through which machines share results.")
        if groups["training"].start_from not in ("", CHAMPION):
            raise UserError("execution.gpu_deployment: training.start_from takes only champion there.")
