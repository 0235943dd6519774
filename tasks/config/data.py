"""Where the rows and the base model come from."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from tasks.config.section import MOST, Name, Section, Where


class MixedSource(Section):
    """One source of `data.mix`."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = Field(
        description="Short name; ids of its rows begin with it."
    )
    path: Where = Field("", description="As data.path.")
    hub_id: Name = Field("", description="As data.hub_id.")
    hub_subset: Name = Field("", description="As data.hub_subset.")
    hub_revision: Name = Field("", description="As data.hub_revision.")
    train_split: str = Field("train", description="As data.train_split.", min_length=1)
    test_split: str = Field("test", description="As data.test_split.", min_length=1)
    share: float = Field(1.0, description="Share of its rows that is used; a hash of the id decides.", gt=0, le=1)
    max_rows: int = Field(
        0, description="Use at most this many of its rows, those with the lowest hashes (0: all).", ge=0, le=MOST
    )
    repeat: int = Field(1, description="How often each of its training rows is used in an epoch.", ge=1, le=100)


class DataConfig(Section):
    """Where the rows come from and which of them are held out."""

    path: Where = Field(
        "",
        description="Rows to train on: a .jsonl, .json, .csv (each also .gz or .zst), .parquet or .arrow file, a "
        "folder of them, or a glob pattern; also behind a URL (https://, s3://, gs://). A relative path starts at the "
        "working directory.",
    )
    test_path: Where = Field(
        "", description="Held-out rows in a separate file, folder or glob pattern. Empty: split `path`."
    )
    hub_id: Name = Field("", description="A data set on the Hugging Face Hub (owner/name) instead of files.")
    hub_subset: Name = Field("", description="Configuration (subset) of the Hub data set. Empty: its default.")
    hub_revision: Name = Field(
        "", description="Branch, tag or commit of the Hub data set; resolved to a commit when a run begins."
    )
    train_split: str = Field("train", description="Name of the training split in the source.", min_length=1)
    test_split: str = Field("test", description="Name of the held-out split in the source.", min_length=1)
    id_column: str = Field(
        "id", description="Column that names a row. Without it, ids are made from the row's content."
    )
    group_column: str = Field(
        "",
        description="Rows with the same value in this column are always in the same split, also for validation. Empty: "
        "the row id decides.",
    )
    test_share: float = Field(
        0.2,
        description="Share of the rows held out when the source has no held-out split (a fraction of 1). A hash of a "
        "row's id or group decides, so a row stays in its split as the data grows.",
        gt=0,
        lt=1,
    )
    max_train_rows: int = Field(0, description="Use at most this many training rows (0: all).", ge=0, le=MOST)
    mix: list[MixedSource] = Field(
        [],
        description="Several sources instead of `path` or `hub_id`: each has a name, a path or hub_id of its own, and "
        "share, max_rows or repeat as it needs (docs/data.md). There is no flag for it.",
    )
    replay_share: float = Field(
        0.0,
        description="Share of the rows (a fraction of 1) that are earlier ones, mixed in from those that the version "
        "in use was made from: rows that the source has no more, those with the lowest hashes (docs/data.md). 0: none.",
        ge=0,
        le=0.9,
    )
    max_lost_share: float = Field(
        0.05,
        description="The run fails when more than this share of the rows (a fraction of 1) is unusable or too long.",
        ge=0,
        le=1,
    )
    max_removed_share: float = Field(
        0.5,
        description="The run fails before training when more than this share of the rows (a fraction of 1) of the "
        "adapter's last version is not in the source any more, as after an export that broke. 1: never.",
        ge=0,
        le=1,
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(map(bool, (self.path, self.hub_id, self.mix))) != 1:
            raise ValueError(
                "give either data.path (files) or data.hub_id (a Hub data set), one of the two, or several in data.mix"
            )
        names = [source.name for source in self.mix]
        for source in self.mix:
            if names.count(source.name) > 1:
                raise ValueError(f"data.mix has two sources called {source.name}; each needs a name of its own")
            if bool(source.path) == bool(source.hub_id):
                raise ValueError(f"data.mix: the source {source.name} needs either a path or a hub_id")
        if self.mix and self.test_path:
            raise ValueError("data.test_path goes with data.path; a source of data.mix is split by its files or ids")
        if self.test_path and self.hub_id:
            raise ValueError(
                "data.test_path goes with data.path; a Hub data set names its held-out split in data.test_split"
            )
        return self


class ModelConfig(Section):
    """The base model. It is read in place and never changed."""

    base: Name = Field(
        "smollm2-135m-instruct",
        description="A model id on the Hub (owner/name, safetensors only), a local folder, or the bundled example "
        "model smollm2-135m-instruct.",
        min_length=1,
    )
    revision: Name = Field(
        "", description="Branch, tag or commit of a Hub model; resolved to a commit when a run begins."
    )
