"""How and when stages run; no result depends on it."""

from typing import Self

from pydantic import Field, model_validator

from tasks.config.section import MOST, TEN_YEARS, Section


class ExecutionConfig(Section):
    """Retries, timeouts and checkpoints. No result depends on these, so they are part of no cache key."""

    retries: int = Field(
        3,
        description="How often a stage is retried after a transient failure: network, busy disk, a killed or hanging "
        "child process. Training continues from its last checkpoint.",
        ge=0,
        le=100,
    )
    retry_seconds: float = Field(
        10,
        description="Seconds before the first retry; doubled for each further one, with jitter.",
        ge=0,
        le=3600,
    )
    hang_minutes: float = Field(
        30,
        description="A training or evaluation process that reports nothing for this many minutes is ended.",
        gt=0,
        le=TEN_YEARS,
    )
    checkpoint_steps: int = Field(
        0,
        description="Optimizer steps between two checkpoints; 0: by time alone. One is saved every 5 minutes in any "
        "case. The last two are kept.",
        ge=0,
        le=MOST,
    )
    gpu_deployment: str = Field(
        "",
        description="Prefect deployment whose worker trains and evaluates in place of this machine, such as "
        "`gpu-stage/gpu`. Both machines share results through QLORA_FLOW_REMOTE. Empty: this machine does.",
    )
    prepare_timeout_minutes: float = Field(
        240, description="Longest time for each of download, format and tokenize in minutes.", gt=0, le=TEN_YEARS
    )
    train_timeout_minutes: float = Field(2880, description="Longest time for training in minutes.", gt=0, le=TEN_YEARS)
    evaluate_timeout_minutes: float = Field(
        720, description="Longest time for evaluation in minutes.", gt=0, le=TEN_YEARS
    )
    publish_timeout_minutes: float = Field(
        60, description="Longest time for each of publishing and promotion in minutes.", gt=0, le=TEN_YEARS
    )


class ScheduleConfig(Section):
    """When a run is worth it. A run of unchanged rows, base, configuration and code reuses every stage in any case."""

    min_new_rows: int = Field(
        0,
        description="Skip the run while fewer rows than this were added or changed since the adapter's last version, "
        "and nothing else changed (0: never skip).",
        ge=0,
        le=MOST,
    )
    max_age_days: float = Field(
        0,
        description="With fewer new rows, train all the same when the last version is this old, in days (0: never).",
        ge=0,
        le=36_500,
    )

    @model_validator(mode="after")
    def _needs_a_threshold(self) -> Self:
        if self.max_age_days and not self.min_new_rows:
            raise ValueError("schedule.max_age_days needs schedule.min_new_rows, without which no run is skipped")
        return self
