"""Stage 1: rows and base model onto this machine."""

import re
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from pydantic import BaseModel, ConfigDict

from tasks.config import DataConfig, ModelConfig
from tasks.download.hub import refusals
from tasks.download.models import BUNDLED, bundled_file, fetch_model
from tasks.download.places import digest, is_remote, pin_files, places
from tasks.errors import UserError
from tasks.store.artifact import ArtifactRef, content_digest, produce
from tasks.store.caching import cached
from tasks.store.identity import Identity
from tasks.store.model import BaseModelRef

ROOM = ("rows", "sources", "places", "formats", "columns", "verdicts", "schema")
"""The modules that decide what becomes of rows."""
COMMIT = re.compile(r"[0-9a-f]{40}")


class Source(BaseModel):
    """What a run starts from."""

    model_config = ConfigDict(frozen=True)

    rows: ArtifactRef
    model: BaseModelRef

    def verify(self) -> None:
        self.rows.verify()
        self.model.verify()


def moving(data: DataConfig, model: ModelConfig) -> tuple[bool, bool]:
    """Whether rows and base model lie behind a Hub branch or tag or a URL, where something else may be tomorrow."""
    local = model.base == BUNDLED or Path(model.base).expanduser().is_dir()
    return (
        is_remote(data) or (bool(data.hub_id) and not COMMIT.fullmatch(data.hub_revision)),
        not local and model.base.count("/") == 1 and not COMMIT.fullmatch(model.revision),
    )


def pin(data: DataConfig, model: ModelConfig) -> tuple[DataConfig, ModelConfig]:
    """Hub branches become commits and URLs get their versions, so that a key names content; what is local stays.

    Raises:
        UserError: the Hub does not know the name, or nothing can be read behind a URL.
    """
    rows, base = moving(data, model)
    if is_remote(data):
        data = pin_files(data)
    elif rows:
        data = data.model_copy(update={"hub_revision": _commit("dataset", data.hub_id, data.hub_revision)})
    if base:
        model = model.model_copy(update={"revision": _commit("model", model.base, model.revision)})
    return data, model


ask_hub = task(name="ask the hub", cache_policy=NO_CACHE, persist_result=False)(pin)
"""`pin` with a stage's retries: never cached, since a branch is asked for anew in every run."""


def _commit(kind: str, name: str, revision: str) -> str:
    from huggingface_hub import HfApi

    with refusals({"dataset": "data.hub_id", "model": "model.base"}[kind], name):
        info = HfApi().repo_info(name, repo_type=kind, revision=revision or None)
    if not info.sha:
        raise UserError(f"The Hub gives no commit for the {kind} {name}.")
    return info.sha


def rows_identity(data: DataConfig) -> Identity:
    """The rows depend on the files' content, not on where they lie."""
    inputs = {
        f"{field} {number} {place.name}": digest(place)
        for field in ("path", "test_path")
        if getattr(data, field)
        for number, place in enumerate(places(data, field))
    }
    return Identity(
        stage="download",
        inputs=inputs,
        config=data.model_dump(exclude={"path", "max_lost_share", "files"}) | {"test_path": bool(data.test_path)},
        code=(*(f"tasks.download.{name}" for name in ROOM), "tasks.store.ledger"),
        libraries=("pyarrow", *(["datasets"] if data.hub_id else [])),
    )


def identity(data: DataConfig, model: ModelConfig) -> Identity:
    """Key of the pair. Each part has one of its own in the store: a new model does not read the rows again."""
    base = content_digest(bundled_file()) if model.base == BUNDLED else f"{model.base}@{model.revision}"
    return Identity(
        stage="download",
        inputs={"rows": rows_identity(data).key, "model": base},
        code=("tasks.download.models", "tasks.download.convert", "tasks.store.model"),
    )


@task(name="download", **cached(identity))
def download(data: DataConfig, model: ModelConfig) -> Source:
    """Rows → rows.parquet with a `split` column; base model → a folder of safetensors."""
    from tasks.download.rows import write_rows

    log = get_run_logger().info
    rows = produce(rows_identity(data), lambda folder: write_rows(data, folder), log)
    info = rows.info
    log("rows read from " + ", ".join(f"{kind} ({count:,})" for kind, count in info["formats"].items()))
    sides = f"{info['train']:,} training and {info['test']:,} held-out rows"
    log(f"{sides}, {info['lost']:,} lost, {info['left_out']:,} left out")
    return Source(rows=rows, model=fetch_model(model, log))


def difference_identity(before: ArtifactRef, now: ArtifactRef) -> Identity:
    return Identity(
        stage="difference",
        inputs={"before": before.digest, "now": now.digest},
        code=("tasks.download.difference",),
        libraries=("pyarrow",),
    )


@task(name="compare rows", **cached(difference_identity))
def compare_rows(before: ArtifactRef, now: ArtifactRef) -> ArtifactRef:
    """Two results of download → difference.parquet; nothing else depends on it."""
    from tasks.download.difference import write_difference

    return produce(
        difference_identity(before, now),
        lambda folder: write_difference(before.path, now.path, folder),
        get_run_logger().info,
    )
