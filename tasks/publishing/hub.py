"""Uploads a version to the Hub and verifies the upload."""

from pathlib import Path

from tasks.errors import UserError
from tasks.publishing.schema import PROBES
from tasks.store.manifest import MANIFEST, read_manifest
from tasks.text import hide_secrets


def upload(version: Path, repo: str, private: bool) -> str:
    """Upload a version's folder without its probes as one commit, and compare the Hub's digests with the manifest.

    Returns:
        the commit.
    Raises:
        UserError: the Hub refuses the token or the name.
        RuntimeError: the Hub has another file than the one that was sent.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    hub, files = HfApi(), read_manifest(version).files
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repo,
            folder_path=version,
            allow_patterns=[*(name for name in files if name != PROBES), MANIFEST],
            commit_message=f"qlora-flow {version.parent.name} {version.name}",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise UserError(
                f"publishing.hub_repo: the Hub refuses to write to {repo} ({status}); "
                "set HF_TOKEN to a token with write access."
            ) from error
        hide_secrets(error)
        raise
    weights = [name for name in files if name.endswith(".safetensors")]
    for entry in hub.get_paths_info(repo, weights, revision=commit.oid):
        stored = getattr(entry, "lfs", None)
        if stored is None or stored.sha256 != files[entry.path].sha256:
            raise RuntimeError(f"{repo} lists another {entry.path} than the one that was uploaded")
    return commit.oid
