"""The metrics by name, and which metrics of a user's own are permitted."""

import difflib
import os
import re
from typing import Annotated, NamedTuple

from pydantic import AfterValidator, ValidationInfo, WithJsonSchema


class Metric(NamedTuple):
    """The title of a metric, and whether lower values are better."""

    title: str
    lower_is_better: bool = False

    @property
    def label(self) -> str:
        return f"{self.title} (lower is better)" if self.lower_is_better else self.title

    def gain(self, difference: float) -> float:
        """A difference of two values as a gain: larger is better."""
        return -difference if self.lower_is_better else difference


METRICS = {
    "loss": Metric("held-out loss", lower_is_better=True),
    "rouge1": Metric("ROUGE-1"),
    "rouge2": Metric("ROUGE-2"),
    "rougeL": Metric("ROUGE-L"),
    "rougeLsum": Metric("ROUGE-Lsum"),
    "exact_match": Metric("exact match"),
    "token_f1": Metric("token F1"),
    "chrf": Metric("chrF"),
}
"""Metrics that come with the project."""


def metric(name: str) -> Metric:
    """A metric of the project, or of the user's own."""
    return METRICS.get(name, Metric(name))


PERMITTED = [name.strip() for name in os.environ.get("QLORA_FLOW_METRICS", "").split(",") if name.strip()]
"""A user's own metrics that a run may use when its fields come from a Prefect server."""
TRUSTED = {"own metrics": True}
"""Validation context of a configuration whose author may run code here: a file that the command reads."""


def _a_metric(name: str, info: ValidationInfo) -> str:
    if name in METRICS or name in PERMITTED:
        return name
    if ":" not in name:
        plain = {re.sub("[^a-z0-9]", "", known.lower()): known for known in METRICS}
        close = difflib.get_close_matches(re.sub("[^a-z0-9]", "", name.lower()), plain, 1)
        raise ValueError(f"there is no such metric{f' (did you mean {plain[close[0]]}?)' if close else ''}")
    if not re.fullmatch(r"([^\W\d]\w*\.)*[^\W\d]\w*:[^\W\d]\w*", name):
        raise ValueError("write a metric of your own as package.module:function")
    if not info.context:
        raise ValueError(
            "a metric of your own is code: name it in a configuration file or a flag, or permit it by "
            "QLORA_FLOW_METRICS in the environment of the worker (docs/evaluation.md)"
        )
    return name


# The server's form offers these choices, and the server refuses all others.
MetricName = Annotated[
    str, AfterValidator(_a_metric), WithJsonSchema({"type": "string", "enum": [*METRICS, *PERMITTED]})
]
