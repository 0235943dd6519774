"""What a run leaves behind for people and programs: one JSON-able summary."""

from pathlib import Path
from typing import Any

from flows.changes import sentence
from tasks.store.artifact import ArtifactRef, written_here


def summarize(stages: dict[str, ArtifactRef], began: float, report: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """For each stage its key, whether it ran, seconds, rows and path; scores; the published version.

    Args:
        began: `time.monotonic()` at the run's start; what was written since then ran.
        changes: how the rows differ from those of an earlier version; empty without one.
    """

    def ran(manifest: dict[str, Any]) -> bool:
        return written_here.get(manifest["key"], float("-inf")) >= began

    manifests = {name: ref.manifest for name, ref in stages.items()}
    published = manifests["publish"]["info"]
    return {
        "stages": {
            name: {
                "key": manifest["key"],
                "outcome": "ran" if ran(manifest) else "reused",
                "seconds": manifest["seconds"] if ran(manifest) else 0.0,
                "rows": stages[name].rows,
                "path": str(stages[name].path),
            }
            for name, manifest in manifests.items()
        },
        "scores": {s["metric"]: {k: v for k, v in s.items() if k != "metric"} for s in published["scores"]},
        "published": {
            "name": published["name"],
            "version": published["version"],
            "path": str(stages["publish"].path),
            "digest": stages["publish"].digest,
        },
        "report": str(report),
        "changes": changes,
    }


def markdown(summary: dict[str, Any]) -> str:
    """The summary as the Prefect UI shows it."""
    published = summary["published"]
    lines = [
        f"## {published['name']} {published['version']}",
        "",
        "| metric | base | tuned | difference | interval |",
        "|---|---:|---:|---:|---:|",
        *(
            f"| {name} | {s['base']:.4f} | {s['tuned']:.4f} | {s['difference']:+.4f} "
            f"| {s['low']:+.4f} to {s['high']:+.4f} |"
            for name, s in summary["scores"].items()
        ),
        "",
        "| stage | outcome | seconds | rows |",
        "|---|---|---:|---:|",
        *(f"| {name} | {s['outcome']} | {s['seconds']:.1f} | {s['rows']:,} |" for name, s in summary["stages"].items()),
        "",
        *([sentence(summary["changes"]), ""] if summary["changes"] else []),
        f"Adapter: `{published['path']}`  ",
        f"Report: `{summary['report']}`",
    ]
    return "\n".join(lines)


def artifact_key(what: str, name: str) -> str:
    """A name as Prefect takes it for an artifact: lower-case letters, digits and dashes."""
    return f"{what}-{name}".replace(".", "-").replace("_", "-")
