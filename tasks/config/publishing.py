"""Where versions go, and when one is put in use."""

import re
from typing import Annotated

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


class PublishingConfig(Section):
    """Where a finished adapter goes."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(
        "adapter", description="Name of the adapter in the registry: lower-case letters, digits, . _ -"
    )
    registry: Name = Field("", description="Folder of numbered versions. Empty: `registry` inside the store.")
    hub_repo: str = Field(
        "",
        description="Hub repository (owner/name) to upload the version to. Empty: none.",
        pattern=r"^([A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)?$",
    )
    hub_private: bool = Field(True, description="Create that repository as private.")
