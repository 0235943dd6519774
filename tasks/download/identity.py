"""The identities of rows and base model, and the lookups over the network that they need."""

import re
from typing import Any, TypeVar

from tasks.config import DataConfig, MixedSource, ModelConfig
from tasks.download.hub import refusals
from tasks.download.models import BUNDLED, MODEL_VERSION, bundled_file
from tasks.download.places import digest, is_remote, pin_files, sources_of
from tasks.download.sources import split_files
from tasks.errors import UserError
from tasks.store.artifact import ArtifactRef
from tasks.store.checked import content_digest
from tasks.store.identity import Identity, installed
from tasks.store.root import at_home

VERSION, DIFFERENCE_VERSION = 6, 2
"""Raised when the same source can give other rows, or a comparison other counts (docs/caching.md)."""
UNREAD: Any = {
    **dict.fromkeys(("path", "max_lost_share", "max_removed_share", "replay_share", "files"), True),
    "mix": {"__all__": {"path"}},
}
"""Fields that do not decide the rows: the content of the files does."""
Pinnable = TypeVar("Pinnable", DataConfig, MixedSource)
COMMIT = re.compile(r"[0-9a-f]{40}")


def moving(data: DataConfig, model: ModelConfig) -> tuple[bool, bool]:
    """Whether rows and base model come from a Hub branch, a tag or a URL, whose content may change."""
    local = model.base == BUNDLED or at_home(model.base, "model.base").is_dir()
    return (
        is_remote(data) or any(each.hub_id and not COMMIT.fullmatch(each.hub_revision) for _, each in sources_of(data)),
        not local and model.base.count("/") == 1 and not COMMIT.fullmatch(model.revision),
    )


def pin(data: DataConfig, model: ModelConfig) -> tuple[DataConfig, ModelConfig]:
    """Resolve Hub branches to commits and URLs to versions of their files, so that a key names content.

    Raises:
        UserError: the Hub does not know the name, or nothing can be read behind a URL.
    """
    rows, base = moving(data, model)
    if rows and data.mix:
        data = data.model_copy(update={"mix": [_at_commit(each) if each.hub_id else each for each in data.mix]})
    elif data.hub_id and rows:
        data = _at_commit(data)
    if is_remote(data):
        data = pin_files(data)
    if base:
        model = model.model_copy(update={"revision": _commit("model", model.base, model.revision)})
    return data, model


def _at_commit(data: Pinnable) -> Pinnable:
    return data.model_copy(update={"hub_revision": _commit("dataset", data.hub_id, data.hub_revision)})


def _commit(kind: str, name: str, revision: str) -> str:
    from huggingface_hub import HfApi, constants

    hub, offline = HfApi(), constants.is_offline_mode()
    with refusals({"dataset": "data.hub_id", "model": "model.base"}[kind], name):
        if not offline:  # otherwise the next call takes the last known commit when the Hub does not answer
            hub.repo_info(name, repo_type=kind, revision=revision or None)
        # saves the commit in the cache for offline runs
        asked = hub.resolve_revision(name, repo_type=kind, revision=revision or None, local_files_only=offline)
    return asked.resolved


def rows_identity(data: DataConfig, replay: ArtifactRef | None = None) -> Identity:
    """The rows depend on the content of files and on the split that their names say, not on their paths.

    Args:
        replay: earlier rows, of which `data.replay_share` mixes some in; None: there are none.
    """
    inputs = {
        f"{source.name if source else 'path'} {n} {place.name}{split and f' ({split})'}": digest(place)
        for source, each in sources_of(data)
        for n, (split, place) in enumerate([] if each.hub_id else split_files(each))
    }
    return Identity(
        stage="download",
        inputs=inputs | ({"replay": replay.digest} if replay else {}),
        config=data.model_dump(exclude=UNREAD)
        | {"test_path": bool(data.test_path)}
        | ({"replay_share": data.replay_share} if replay else {}),
        version=VERSION,
        libraries=installed("pyarrow", "orjson", *{"datasets" for _, each in sources_of(data) if each.hub_id}),
    )


def check_unchanged(named: Identity, data: DataConfig, replay: ArtifactRef | None = None) -> None:
    """Check after reading that the files are still those that the key names.

    Raises:
        UserError: they are not.
    """
    if rows_identity(data, replay).inputs != named.inputs:
        raise UserError("data: a file of data.path or data.test_path changed while this run read it; run again.")


def identity(data: DataConfig, model: ModelConfig, replay: ArtifactRef | None = None) -> Identity:
    """The identity of rows and model together. Each also has its own: a new model does not read the rows again."""
    if model.base == BUNDLED:
        base = content_digest(bundled_file())
    elif (local := at_home(model.base, "model.base")).is_dir():
        base = str(local.absolute())  # a relative name is another folder in another working directory
    else:
        base = f"{model.base}@{model.revision}"
    return Identity(
        stage="download",
        inputs={"rows": rows_identity(data, replay).key, "model": base},
        version=MODEL_VERSION,
    )


def difference_identity(before: ArtifactRef, now: ArtifactRef) -> Identity:
    return Identity(
        stage="difference",
        inputs={"before": before.digest, "now": now.digest},
        version=DIFFERENCE_VERSION,
        libraries=installed("pyarrow"),
    )
