"""Stage 5: base, champion and tuned model answer the held-out rows, and are compared."""

from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from tasks.config import METRICS, EvaluationConfig, ExecutionConfig, TrainingConfig
from tasks.evaluation.facts import EvaluationFacts, WatchFacts
from tasks.evaluation.identity import identity, own_metric
from tasks.formatting.facts import PromptFacts
from tasks.model import quantization
from tasks.process.child import run_child
from tasks.store.artifact import ArtifactRef, intact, produce
from tasks.store.caching import cached
from tasks.store.model import BaseModelRef
from tasks.store.origins import by_digest, results
from tasks.tokenization.facts import TokenFacts


@task(name="evaluate", **cached(identity))
def evaluate(
    adapter: ArtifactRef,
    tokens: ArtifactRef,
    prompts: ArtifactRef,
    model: BaseModelRef,
    config: EvaluationConfig,
    execution: ExecutionConfig,
    champion: ArtifactRef | None = None,
) -> ArtifactRef:
    """Held-out rows → predictions.parquet and scores.parquet.

    Args:
        champion: a published version that answers the same rows. If it cannot, it is left out, and the log says why.
    """
    from tasks.evaluation.champion import trained_before, why_not
    from tasks.evaluation.schema import FACTS, EvaluationJob
    from tasks.evaluation.watch import watch_rows
    from tasks.formatting.schema import PROMPTS
    from tasks.tokenization.schema import TOKENS

    log = get_run_logger().info

    def write(folder: Path) -> EvaluationFacts:
        check_scorable(tokens, prompts, model, config)
        training = adapter.manifest.fields(TrainingConfig).model_dump()
        left_out = why_not(champion, training, prompts, model) if champion else ""
        if left_out:
            log(f"the champion is not compared: {left_out}")
        compared = champion if champion and not left_out else None
        before, unknown = trained_before(adapter, compared)
        if unknown:
            log(unknown)
        watched = {each.name: watch_rows(each, tokens, prompts, model, log) for each in config.watch}
        job = EvaluationJob(
            tokens=tokens.path / TOKENS,
            prompts=prompts.path / PROMPTS,
            rows=_source(prompts) if config.slices else None,
            watch={name: (made.path, made.facts(WatchFacts).ending) for name, made in watched.items()},
            ending=prompts.facts(PromptFacts).ending,
            eos=tokens.facts(TokenFacts).eos,
            model=Path(model.folder),
            adapter=adapter.path / "adapter",
            champion=compared.path if compared else None,
            trained_before=[each / PROMPTS for each in before],
            digests={"model": model.digest, "tuned": adapter.part("adapter")}
            | ({"champion": compared.manifest.identity.inputs["adapter"]} if compared else {}),
            training={name: training[name] for name in quantization.FIELDS},
            config=config,
            output=folder,
        )
        run_child("tasks.evaluation.worker", job.model_dump(mode="json"), log, execution.hang_minutes)
        if compared:
            compared.verify()  # it did not change while it answered
        facts = EvaluationFacts.model_validate_json((folder / FACTS).read_bytes())
        return facts.model_copy(update={"champion_left_out": left_out or facts.champion_left_out, "unknown": unknown})

    inputs = (adapter, tokens, prompts, model)
    return produce(identity(*inputs, config, champion), write, log, inputs)


def _source(prompts: ArtifactRef) -> Path:
    """The folder of the download stage's rows from which the prompts were made."""
    return by_digest(results())[prompts.manifest.identity.inputs["rows"]][0]


def check_scorable(tokens: ArtifactRef, prompts: ArtifactRef, model: BaseModelRef, config: EvaluationConfig) -> None:
    """Before training, and again where training is reused: check metrics, slices, references and watch sets.

    Raises:
        UserError: a metric or column is missing, a reference cannot be scored, or a watch set is trained on.
    """
    from tasks.evaluation.metrics import check_references
    from tasks.evaluation.rows import held_out
    from tasks.evaluation.slices import check_slices
    from tasks.evaluation.watch import check_watch, watch_rows
    from tasks.formatting.schema import PROMPTS
    from tasks.tokenization.schema import TOKENS

    for name in config.metrics:
        if name not in METRICS:
            own_metric(name)
    check_slices(_source(prompts) if config.slices else None, config.slices, config.metrics)
    with intact((tokens, prompts)):
        check_references(held_out(tokens.path / TOKENS, prompts.path / PROMPTS, config.max_rows), config.metrics)
        for each in config.watch:
            check_watch(each, watch_rows(each, tokens, prompts, model, get_run_logger().info), prompts, config.metrics)
