"""One retrain, from rows to a published adapter. Each line of the flow is a stage."""

import time
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.elsewhere import compute_elsewhere
from flows.flow_run import by_a_worker, describe, tell, tell_little_disk, unattended
from flows.run.changes import earlier_rows, sentence, too_little_new
from flows.run.continued import to_begin_from, to_replay, unless_trained
from flows.run.data import check_losses, check_removed, check_sides, show_data
from flows.run.logs import readable_logs
from flows.run.summary import artifact_key, leave_artifacts, skipped, summarize
from flows.stages import BY_NAME, limited
from tasks.config import (
    DataConfig,
    EvaluationConfig,
    ExecutionConfig,
    FormattingConfig,
    ModelConfig,
    PromotionConfig,
    PublishingConfig,
    ScheduleConfig,
    TokenizationConfig,
    TrainingConfig,
)
from tasks.download.facts import DifferenceFacts
from tasks.download.identity import moving
from tasks.download.task import ask_hub, compare_rows, download
from tasks.errors import UserError
from tasks.evaluation.task import check_scorable, evaluate
from tasks.formatting.task import format_prompts
from tasks.process.child import ends_children_ahead, start_ahead
from tasks.promotion.champion import begin, opponent
from tasks.promotion.task import promote, this_run
from tasks.publishing.identity import registry_folder
from tasks.publishing.task import publish
from tasks.report.report import write_report
from tasks.store.artifact import ArtifactRef, in_use, intact
from tasks.store.caching import VerifiedJSONSerializer
from tasks.store.manifest import DamagedArtifact
from tasks.tokenization.task import tokenize
from tasks.training.distributed.nodes import gpus
from tasks.training.task import fetch_start, train

readable_logs()


@flow(name="retrain", persist_result=False, validate_parameters=False, result_serializer=VerifiedJSONSerializer())
@unattended
def retrain(
    data: DataConfig,
    model: ModelConfig = ModelConfig(),
    formatting: FormattingConfig = FormattingConfig(),
    tokenization: TokenizationConfig = TokenizationConfig(),
    training: TrainingConfig = TrainingConfig(),
    evaluation: EvaluationConfig = EvaluationConfig(),
    publishing: PublishingConfig = PublishingConfig(),
    promotion: PromotionConfig = PromotionConfig(),
    execution: ExecutionConfig = ExecutionConfig(),
    schedule: ScheduleConfig = ScheduleConfig(),
) -> Any:
    """Fine-tune a LoRA adapter on instruction data, compare it with base and champion, publish it, use it if better.

    Args:
        data: Where the rows come from and which are held out.
        model: The base model.
        formatting: How a row becomes a prompt and an answer.
        tokenization: How text becomes tokens, and what happens to long rows.
        training: Quantization, LoRA and optimization.
        evaluation: How base and tuned model are compared.
        publishing: Where the adapter goes.
        promotion: When a new version replaces the one in use.
        execution: Retries and timeouts; no result depends on them.
        schedule: When there are too few new rows to train again.
    Returns:
        a state whose message is the outcome in a sentence and whose data is the summary, a dictionary. A caller of the
        flow gets the summary.
    """
    groups: dict[str, Any] = dict(locals())
    began = time.monotonic()
    log = get_run_logger().info
    registry = registry_folder(publishing)
    tags = [publishing.name, Path(model.base).name]
    describe(publishing.name, tags)

    def chain() -> dict[str, Any]:
        begin(registry, this_run())
        stages: dict[str, ArtifactRef] = {}
        source = limited(download, execution)(now[0], now[1], to_replay(data, registry, log))
        stages["download"], base = source.rows, source.model
        start = to_begin_from(training, registry, begun, base, log)
        changes: dict[str, Any] = {}
        if earlier := earlier_rows(registry, source.rows):
            difference = limited(compare_rows, execution)(earlier[1], source.rows).facts(DifferenceFacts)
            changes = {"since": earlier[0], **difference.model_dump()}
            log(sentence(changes))
            if not data.replay_share:  # with it, the source is expected to have new rows alone
                check_removed(changes, data.max_removed_share)
            if why := too_little_new(groups, earlier[1], base, changes):
                return skipped(why, began, changes)
        new = f" (+{changes['added']:,})" if changes else ""
        describe(f"{publishing.name} · {source.rows.rows:,} rows{new} · lr {training.learning_rate:g}", tags)
        if gpus() == 1 and not BY_NAME["format"].computed(stages, base, groups):
            start_ahead("tasks.training.worker")
        stages["format"] = prompts = limited(format_prompts, execution)(source.rows, base, formatting)
        stages["tokenize"] = tokens = limited(tokenize, execution)(prompts, base, tokenization)
        check_losses([source.rows, prompts, tokens], data.max_lost_share)
        check_sides(tokens)
        show_data(stages, training, artifact_key("data", publishing.name))
        start = unless_trained(start, registry, tokens, base, training)
        if not BY_NAME["train"].computed(stages, base, groups, start):  # before hours of training
            check_scorable(tokens, prompts, base, evaluation)
            if gpus():  # without them, imports would take processors from training
                start_ahead("tasks.evaluation.worker", "tasks.promotion.clean_room")
        compute_elsewhere("train", stages, base, groups | {"model": now[1]}, start)
        stages["train"] = adapter = limited(train, execution)(tokens, base, training, execution, start)
        compared = opponent(registry, adapter.part("adapter"))
        compute_elsewhere("evaluate", stages, base, groups | {"model": now[1]}, compared)
        stages["evaluate"] = scores = limited(evaluate, execution)(
            adapter, tokens, prompts, base, evaluation, execution, compared
        )
        stages["publish"] = version = limited(publish, execution)(adapter, scores, tokens, prompts, base, publishing)
        decision = limited(promote, execution)(version, scores, compared, base, publishing, promotion, execution)
        with intact(stages.values()):
            report = write_report(stages, decision.sentence)
            summary = summarize(stages, began, report, changes, decision)
            leave_artifacts(summary, adapter)
        log(f"report: {report}")
        if decision.outcome == "refused":
            raise UserError(decision.sentence)
        return summary

    with in_use(), ends_children_ahead():
        if by_a_worker():
            from flows.checks import check  # imports pyarrow

            check(groups)  # as the command `run` does
        begun = limited(fetch_start, execution)(training.start_from) if training.start_from else None
        now = limited(ask_hub, execution)(data, model) if any(moving(data, model)) else (data, model)
        try:
            summary = chain()
        except DamagedArtifact as error:
            get_run_logger().warning(
                f"{error}. The stages run again: intact results are reused, damaged ones are computed."
            )
            summary = chain()
    log(summary["said"])
    tell(summary["outcome"], publishing.name, summary["said"])
    if summary["outcome"] == "published":
        tell(f"candidate.{summary['promotion']['outcome']}", publishing.name, summary["said"])
    tell_little_disk(publishing.name)
    return Completed(message=summary["said"], data=summary)
