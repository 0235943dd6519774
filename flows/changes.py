"""What a retrain's rows have new, compared with those of the adapter's last version that was made from others."""

from pathlib import Path
from typing import Any

from tasks.publishing.registry import versions
from tasks.store.artifact import ArtifactRef, DamagedArtifact, reference
from tasks.store.origins import origins, readable, results


def earlier_rows(registry: Path, rows: ArtifactRef) -> tuple[str, ArtifactRef] | None:
    """The rows to compare with, and the version made from them.

    Args:
        registry: folder of the adapter's versions.
        rows: those of this run.
    """
    there = readable(reversed(versions(registry)))
    among = results() if there else {}
    for version, manifest in there.items():
        folders = [f for f in origins([manifest], among) if among[f]["identity"]["stage"] == "download"]
        found = [reference(folder, among[folder]) for folder in sorted(folders)]
        if not found or rows.digest in [ref.digest for ref in found]:
            continue
        try:
            found[0].verify()
            return version.name, found[0]
        except DamagedArtifact:
            continue
    return None


def sentence(changes: dict[str, Any]) -> str:
    """The changes in words."""
    counts = ", ".join(f"{changes[what]:,} {what}" for what in ("added", "removed", "changed", "same"))
    return f"rows since {changes['since']}: {counts}"
