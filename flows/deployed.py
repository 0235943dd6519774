"""The flows beside `retrain`, `promote` and `rollback` that deployments run."""

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from pydantic import Field, WithJsonSchema

from flows.checks import check
from flows.config_file import files_of, load
from flows.flow_run import describe, unattended
from flows.promote import base_named, find, named_version
from flows.retrain import retrain
from flows.run.data import check_losses
from flows.run.summary import artifact_key
from flows.stages import limited
from tasks.config import SECTIONS, DataConfig, EvaluationConfig, ExecutionConfig, FormattingConfig, TokenizationConfig
from tasks.download.identity import moving
from tasks.download.task import ask_hub, download
from tasks.errors import UserError
from tasks.evaluation import tables
from tasks.evaluation.facts import EvaluationFacts
from tasks.evaluation.task import evaluate
from tasks.formatting.task import format_prompts
from tasks.process.failures import disk_trouble
from tasks.promotion import champion
from tasks.publishing.identity import registry_folder
from tasks.publishing.registry import versions
from tasks.store.artifact import in_use
from tasks.store.caching import VerifiedJSONSerializer
from tasks.store.origins import by_digest, made_from, results
from tasks.store.root import at_home, store_root
from tasks.text import code, visible
from tasks.tokenization.task import tokenize

AS_IN_THE_FILE: dict[str, Any] = {}


def _few(group: str, *fields: str) -> WithJsonSchema:
    """Some fields of a group as the form shows them; an empty one is not given."""
    schema = SECTIONS[group].model_json_schema()["properties"]
    shown = {name: {about: of for about, of in schema[name].items() if about != "default"} for name in fields}
    return WithJsonSchema({"type": "object", "additionalProperties": False, "properties": shown})


@flow(name="retrain-file", persist_result=False, validate_parameters=False, result_serializer=VerifiedJSONSerializer())
@unattended
def retrain_file(
    configuration: str,
    data: Annotated[dict[str, Any], _few("data", "path", "max_train_rows")] = AS_IN_THE_FILE,
    model: Annotated[dict[str, Any], _few("model", "base")] = AS_IN_THE_FILE,
    tokenization: Annotated[dict[str, Any], _few("tokenization", "max_length")] = AS_IN_THE_FILE,
    training: Annotated[
        dict[str, Any], _few("training", "quantization", "lora_r", "learning_rate", "batch_size", "epochs")
    ] = AS_IN_THE_FILE,
    publishing: Annotated[dict[str, Any], _few("publishing", "name")] = AS_IN_THE_FILE,
) -> Any:
    """Retrain from a configuration file, with a few of its fields changed.

    Args:
        configuration: YAML file; a relative path begins at the folder that was deployed. A field that is empty below
            keeps the file's value; the default is that of a file which does not name the field.
        data: Where the rows come from.
        model: The base model.
        tokenization: What happens to long rows.
        training: Quantization, LoRA and optimization.
        publishing: Where the adapter goes.
    Returns:
        what the flow `retrain` returns.
    """
    changed = dict(data=data, model=model, tokenization=tokenization, training=training, publishing=publishing)
    groups: dict[str, Any] = dict(load(at_home(configuration, "configuration"), changed))
    return retrain.fn(**groups)


@flow(name="evaluate-only", persist_result=False, validate_parameters=False, result_serializer=VerifiedJSONSerializer())
@unattended
def evaluate_only(
    name: str,
    data: DataConfig,
    version: str = "",
    registry: str = "",
    evaluation: EvaluationConfig = EvaluationConfig(),
    execution: ExecutionConfig = ExecutionConfig(),
) -> Any:
    """Score a published version against its base and the version in use; its formatting and tokenization are used.

    Args:
        name: Name of the adapter.
        data: Where the rows come from; the held-out ones are scored.
        version: Version to score, such as v0007. Empty: the newest.
        registry: Folder of the registry. Empty: the one in the store, or another that this store published to.
        evaluation: How base, version and version in use are compared.
        execution: Retries and timeouts; no result depends on them.
    Returns:
        a state whose message is the verdict, and whose data are the scores.
    """
    from tasks.evaluation.rows import seen_rows
    from tasks.formatting.schema import PROMPTS
    from tasks.tokenization.schema import TOKENS

    folder = find(name, registry)
    chosen = named_version(folder, version or versions(folder)[-1].name)
    describe(title := f"{name} {chosen.path.name}", [name])
    with in_use():
        manifests = results()
        if len(made := made_from(chosen.manifest, manifests, by_digest(manifests))) < 3:
            raise UserError(
                f"{title} cannot be scored here: what it was made from is not in {store_root()}. Use the store "
                "in which it was trained."
            )
        adapter, learnt_tokens, learnt_prompts, *_ = made
        model = base_named(chosen.manifest)
        now = limited(ask_hub, execution)(data, model) if any(moving(data, model)) else (data, model)
        source = limited(download, execution)(*now)
        if source.model.digest != chosen.manifest.identity.inputs["model"]:
            raise UserError(f"The base {source.model.source} is not the one any more that {title} was trained on.")
        formatting = learnt_prompts.manifest.fields(FormattingConfig)
        prompts = limited(format_prompts, execution)(source.rows, source.model, formatting)
        tokenization = learnt_tokens.manifest.fields(TokenizationConfig)
        tokens = limited(tokenize, execution)(prompts, source.model, tokenization)
        check_losses([source.rows, prompts, tokens], data.max_lost_share)
        in_place = champion.champion_of(champion.read(folder))
        other = champion.intact(folder, in_place) if in_place not in ("", chosen.path.name) else None
        scores = limited(evaluate, execution)(adapter, tokens, prompts, source.model, evaluation, execution, other)
        seen, _ = seen_rows(tokens.path / TOKENS, prompts.path / PROMPTS, [learnt_prompts.path / PROMPTS])
    facts = scores.facts(EvaluationFacts)
    said = f"{title} on {facts.rows:,} held-out rows: {tables.verdict(facts.scores)}"
    if seen:
        said += f" It was trained on {len(seen):,} of these rows, or on near copies, which flatters it."
        get_run_logger().warning(said)
    table = tables.score_table(facts.scores, f"{100 * facts.confidence:g}")
    create_markdown_artifact(
        f"## {title}\n\n{said}\n\n{tables.markdown(table)}\n\n{tables.markdown(tables.health_table(facts.health))}\n",
        key=artifact_key("evaluate", name),
    )
    return Completed(message=said, data=facts.scores)


@flow(name="retrain-all", persist_result=False, validate_parameters=False)
@unattended
def retrain_all(folder: str) -> Any:
    """Retrain every configuration of a folder, one after another. Results that several share are computed once.

    Args:
        folder: Folder of YAML files, each one a configuration; a relative path begins at the folder that was deployed.
    Returns:
        a state whose message counts what came of them, and whose data is a sentence for each file that did not fail.
    """
    describe(folder, [])
    log = get_run_logger()
    if not (files := files_of(place := at_home(folder, "folder"))):
        return Failed(message=f"folder: {place.absolute()} holds no .yaml file.")
    said: dict[str, str] = {}
    failed: dict[str, str] = {}
    adapters: dict[Path, str] = {}
    for file in files:
        try:
            groups: dict[str, Any] = dict(load(file, {}))
            check(groups)
            other = adapters.setdefault(registry_folder(groups["publishing"]), file.name)
            if other != file.name:  # each would replace the other's version, every night
                raise UserError(
                    f"publishing.name: {other} has {groups['publishing'].name} too; give each its own name."
                )
            said[file.name] = retrain(**groups)["said"]
            log.info(f"{file.name}: {said[file.name]}")
        except Exception as error:  # the others run all the same
            failed[file.name] = visible(disk_trouble(error) or error)
            log.error(f"{file.name} failed: {failed[file.name]}")
    lines = [f"| {code(name)} | {code(what)} |" for name, what in sorted({**said, **failed}.items())]
    create_markdown_artifact("\n".join(["| configuration | outcome |", "|---|---|", *lines]), key="retrain-all")
    if failed:
        sentences = "; ".join(f"{name}: {what}" for name, what in failed.items())
        return Failed(message=f"{len(failed)} of {len(files)} failed: {sentences}")
    return Completed(message=f"{len(files)} configurations: {'; '.join(dict.fromkeys(said.values()))}", data=said)


@flow(name="clean", persist_result=False, validate_parameters=False)
@unattended
def clean(keep_last: Annotated[int, Field(ge=1)] = 3, keep_days: Annotated[int, Field(ge=0)] = 30) -> Any:
    """Remove what neither the latest runs nor versions that are or were in use need.

    Args:
        keep_last: Results to keep of each stage, and versions of each adapter.
        keep_days: Age in days at which versions that were never in use, and abandoned checkpoints, are removed.
    """
    from flows.clean import clean

    removed, freed = clean(keep_last, keep_days)
    return Completed(message=f"{len(removed)} results removed, {freed / 2**20:,.1f} MiB freed", data=removed)
