"""Compares the rows of a run with those of the adapter's latest version that was made from other rows."""

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from flows.run.plan import plan
from tasks.publishing.identity import registry_folder
from tasks.publishing.registry import versions
from tasks.store.artifact import ArtifactRef
from tasks.store.manifest import DamagedArtifact, read_manifest, readable
from tasks.store.model import BaseModelRef, Source
from tasks.store.origins import by_digest, results, rows_of


def earlier_rows(registry: Path, rows: ArtifactRef) -> tuple[str, ArtifactRef] | None:
    """The name of the version to compare with, and its rows; None if there is none.

    Args:
        registry: folder of the adapter's versions.
        rows: those of this run.
    """
    there = list(reversed(versions(registry)))
    manifests = results() if there else {}
    holding = by_digest(manifests)
    for version, manifest in readable(there).items():
        found = rows_of(manifest, manifests, holding)
        if found and found.digest != rows.digest:
            with contextlib.suppress(DamagedArtifact, OSError):
                found.verify()
                return version.name, found
    return None


def too_little_new(groups: dict[str, Any], before: ArtifactRef, base: BaseModelRef, changes: dict[str, Any]) -> str:
    """Why `schedule` skips this run; empty if it does not.

    Args:
        groups: the flow's parameters.
        before: the rows that the version named in `changes` was made from.
    """
    schedule, new = groups["schedule"], changes["added"] + changes["changed"]
    newest = versions(registry_folder(groups["publishing"]))[-1]
    if new >= schedule.min_new_rows or newest.name != changes["since"]:
        return ""
    made = datetime.strptime(read_manifest(newest).created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    if schedule.max_age_days and datetime.now(UTC) - made >= timedelta(days=schedule.max_age_days):
        return ""
    if not all(stage.reused for stage in plan(groups, Source(rows=before, model=base))):
        return ""  # not only the rows have changed
    return f"Skipped: {new:,} new rows since {newest.name}; schedule.min_new_rows is {schedule.min_new_rows:,}."


def sentence(changes: dict[str, Any]) -> str:
    """The changes in words."""
    counts = ", ".join(f"{changes[what]:,} {what}" for what in ("added", "removed", "changed", "same"))
    return f"rows since {changes['since']}: {counts}"
