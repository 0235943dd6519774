"""When a version is put in use."""

import re

from pydantic import Field, field_validator

from tasks.config.section import Name, Section

GUARD = re.compile(r"(?P<metric>[^\s\[\]]+)(\[(?P<column>[^=\]]+)=(?P<value>[^\]]*)\])? (?P<fall>\d*\.?\d+)")
"""As a guard is written: `rougeL 0.02`, or `rougeL[topic=travel] 0.03` for the rows of a slice."""


class PromotionConfig(Section):
    """When a new version takes the place of the one in use (docs/promotion.md)."""

    metric: Name = Field(
        "loss", description="Metric of evaluation.metrics in which the new version must be better.", min_length=1
    )
    min_gain: float = Field(0.0, description="It must be better by more than this, in units of the metric.", ge=0)
    guards: list[str] = Field(
        [],
        description="What must not fall by more than a number: METRIC NUMBER, such as rougeL 0.02, or "
        "METRIC[COLUMN=VALUE] NUMBER for a slice of the test rows, such as rougeL[topic=travel] 0.03, or "
        "METRIC[watch=NAME] NUMBER for a set of evaluation.watch.",
    )
    error_rate: float = Field(
        0.05,
        description="Chance that any promotion within the life of a test set was of an adapter that is no better.",
        gt=0,
        le=0.5,
    )
    comparisons: int = Field(
        100,
        description="How many comparisons that life has. Each has the level error_rate / comparisons.",
        ge=1,
        le=100_000,
    )
    approval: bool = Field(
        False, description="A better version waits until a person promotes it; the run completes without."
    )

    @field_validator("guards")
    @classmethod
    def _are_guards(cls, guards: list[str]) -> list[str]:
        if wrong := [guard for guard in guards if not GUARD.fullmatch(guard)]:
            raise ValueError(f"{wrong[0]!r} is no guard: write rougeL 0.02, or rougeL[topic=travel] 0.02 for a slice")
        return guards
