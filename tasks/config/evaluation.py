"""How answers are scored."""

from typing import Annotated

from pydantic import Field, field_validator

from tasks.config.formatting import FormattingConfig
from tasks.config.metrics import METRICS, MetricName
from tasks.config.section import MOST, Name, Section


class WatchSet(Section):
    """Rows of another task, which show what the adapter forgets: they are scored and never trained on."""

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] = Field(description="Short name, as a guard has it.")
    path: Name = Field(description="A file, folder or glob pattern on this machine, as data.path.", min_length=1)
    formatting: FormattingConfig | None = Field(
        None, description="How its rows become prompts. Empty: like those of the data."
    )


class EvaluationConfig(Section):
    """How base and tuned model are compared on the held-out rows."""

    max_rows: int = Field(
        0, description="Score at most this many held-out rows, chosen by hash of their id (0: all).", ge=0, le=MOST
    )
    max_new_tokens: int = Field(128, description="Longest generated answer in tokens.", ge=1, le=8192)
    batch_tokens: int = Field(
        0,
        description="Prompt tokens in one pass (0: as many as memory allows). Halved when memory runs out.",
        ge=0,
        le=1_048_576,
    )
    metrics: list[MetricName] = Field(
        [*METRICS],
        description=f"What scores the models: {', '.join(METRICS)}; in a file or flag also package.module:function of "
        "an installed package (docs/evaluation.md).",
        min_length=1,
        json_schema_extra={"uniqueItems": True},
    )
    slices: list[str] = Field(
        [],
        description="Columns of the data: rows with one value are scored apart as well. Slices by the length of the "
        "prompt and by shortened or not are always made.",
        json_schema_extra={"uniqueItems": True},
    )
    watch: list[WatchSet] = Field(
        [],
        description="Rows of other tasks, which show what the adapter forgets: each set has a name, a path and, where "
        "its columns are others, a formatting of its own (docs/evaluation.md). There is no flag for it.",
    )
    confidence: float = Field(0.95, description="Level of the bootstrap interval on tuned minus base.", gt=0.5, lt=1)
    seed: int = Field(0, description="Seed of the bootstrap.", ge=0, lt=2**32)

    @field_validator("watch")
    @classmethod
    def _named_once(cls, watch: list[WatchSet]) -> list[WatchSet]:
        names = [each.name for each in watch]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two sets are called {twice[0]}; each needs a name of its own")
        return watch

    @field_validator("metrics", "slices")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} is given twice")
        return names
