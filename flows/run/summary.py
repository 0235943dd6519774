"""The summary of a run: a dictionary for programs, Markdown for people."""

import time
from pathlib import Path
from typing import Any

from flows.run.changes import sentence
from tasks.evaluation import tables
from tasks.evaluation.facts import EvaluationFacts
from tasks.promotion.schema import Decision
from tasks.publishing.facts import VersionFacts
from tasks.report.versions import beside
from tasks.store.artifact import ArtifactRef, written_here
from tasks.store.manifest import Manifest, read_manifest
from tasks.store.root import store_root
from tasks.text import code
from tasks.training.facts import TrainingFacts

TRAINING = (
    *("steps", "loss_first", "loss_last", "tokens_per_second"),
    *("validation_rows", "validation_loss", "validation_loss_last", "best_step", "stopped_early"),
)
"""Training facts that the summary has."""


def summarize(
    stages: dict[str, ArtifactRef], began: float, report: Path, changes: dict[str, Any], decision: Decision
) -> dict[str, Any]:
    """The summary of a run: stages (key, outcome, seconds, rows, path), training, scores, published version, promotion.

    Args:
        began: `time.monotonic()` at the run's start. A result that was written since then counts as `ran`.
        changes: how the rows differ from those of an earlier version; empty if there is none.
    """

    def ran(manifest: Manifest) -> bool:
        return written_here.get(manifest.key, float("-inf")) >= began

    manifests = {name: ref.manifest for name, ref in stages.items()}
    pieces = {name: [manifest] for name, manifest in manifests.items()}
    training = manifests["train"].facts(TrainingFacts)
    model = Path(training.model)
    if model.parent == store_root() / "artifacts":  # the bundled model, converted by the first stage
        pieces["download"].append(read_manifest(model))
    published, evaluated = manifests["publish"].facts(VersionFacts), manifests["evaluate"].facts(EvaluationFacts)
    return {
        "stages": {
            name: {
                "key": manifest.key,
                "outcome": "ran" if any(map(ran, pieces[name])) else "reused",
                "seconds": sum(part.seconds for part in pieces[name] if ran(part)),
                "rows": stages[name].rows,
                "path": str(stages[name].path),
            }
            for name, manifest in manifests.items()
        },
        "training": {name: value for name in TRAINING if (value := getattr(training, name)) is not None},
        "seconds": time.monotonic() - began,
        "verdict": tables.verdict(published.scores),
        "confidence": evaluated.confidence,
        "held_out": {
            "rows": evaluated.rows,
            "left_out": evaluated.left_out,
            "said": tables.left_out(evaluated),
        },
        "scores": {s["metric"]: {k: v for k, v in s.items() if k != "metric"} for s in published.scores},
        "watch": evaluated.watch,
        "health": published.health,
        "published": {
            "name": published.name,
            "version": published.version,
            "path": str(stages["publish"].path),
            "digest": stages["publish"].digest,
        },
        "versions": beside(stages["publish"].path),
        "report": str(report),
        "changes": changes,
        "promotion": decision.model_dump(),
        **outcome(published, ran(manifests["publish"]), decision),
    }


def outcome(published: VersionFacts, ran: bool, decision: Decision) -> dict[str, str]:
    """The outcome of a run: a word for programs and a sentence for people."""
    version, decided = f"{published.name} {published.version}", decision.sentence.removesuffix(".")
    if ran:
        return {"outcome": "published", "said": f"Published {version}. {decided}"}
    nothing = f"Nothing changed: rows, base, configuration and code are those of {version}"
    return {"outcome": "unchanged", "said": nothing if decision.outcome == "kept" else decided}


def skipped(why: str, began: float, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """The summary of a run that was skipped."""
    seconds = time.monotonic() - began
    return {"outcome": "skipped", "said": why, "stages": {}, "seconds": seconds, "changes": changes or {}}


def parts(summary: dict[str, Any]) -> list[str | list[list[str]]]:
    """What UI and terminal show below the outcome: sentences, and tables as lines of cells under a line of titles."""
    scores = [{"metric": name, **score} for name, score in summary["scores"].items()]
    watch, versions, level = summary["watch"], summary["versions"], f"{100 * summary['confidence']:g}"
    stages = [["stage", "outcome", "seconds", "rows"]]
    for name, stage in summary["stages"].items():
        stages.append([name, stage["outcome"], f"{stage['seconds']:.1f}", f"{stage['rows']:,}"])
    found = (
        tables.score_table(scores, level),
        summary["held_out"]["said"],
        *(["Rows of other tasks:", tables.score_table(watch, level)] if watch else []),
        tables.health_table(summary["health"]),
        "Shares of the answers; length is relative to the reference.",
        *(["This version and earlier ones:", tables.version_table(versions)] if versions[1:] else []),
        stages,
        _trained(summary["training"]),
        sentence(summary["changes"]) if summary["changes"] else "",
    )
    return [part for part in found if part]


def markdown(summary: dict[str, Any]) -> str:
    """The summary as the Prefect UI shows it."""
    published = summary["published"]
    blocks = [
        f"## {published['name']} {published['version']}",
        f"**{summary['said']}.** {summary['verdict']}",
        *(part if isinstance(part, str) else tables.markdown(part) for part in parts(summary)),
        f"Adapter: {code(published['path'])}  \nReport: {code(summary['report'])}",
    ]
    return "\n\n".join(blocks)


def leave_artifacts(summary: dict[str, Any], adapter: ArtifactRef) -> None:
    """Leave summary and link to the report as artifacts of the run, with the loss as a picture if training ran."""
    from prefect.artifacts import create_link_artifact, create_markdown_artifact

    published, drawn = summary["published"], ""
    if summary["stages"]["train"]["outcome"] == "ran":
        from tasks.report.report import picture
        from tasks.report.training import training

        for loss in training(adapter.path, adapter.manifest)["charts"][:1]:
            drawn = f"\n\n**{loss.title}** over the steps of training\n\n{picture(loss)}\n"
    name = published["name"]
    create_markdown_artifact(markdown(summary) + drawn, artifact_key("retrain", name), summary["said"])
    report = Path(summary["report"])
    create_link_artifact(report.as_uri(), report.name, artifact_key("report", name), "On the machine of the worker")


def _trained(training: dict[str, Any]) -> str:
    """One or two sentences about training."""
    said = f"Training loss {training['loss_first']:.3f} → {training['loss_last']:.3f} in {training['steps']:,} steps"
    if "validation_rows" not in training:
        return f"{said}."
    return (
        f"{said}{', stopped early' if training['stopped_early'] else ''}. Validation loss on "
        f"{training['validation_rows']:,} rows held back: lowest {training['validation_loss']:.3f} after step "
        f"{training['best_step']:,}, whose weights were kept; last {training['validation_loss_last']:.3f}."
    )


def artifact_key(what: str, name: str) -> str:
    """A key that Prefect accepts for an artifact: lower-case letters, digits and dashes."""
    return f"{what}-{name}".replace(".", "-").replace("_", "-")
