"""Facts of an evaluation, of kept answers and of a watch set."""

from typing import Any

from pydantic import Field

from tasks.store.facts import Facts

WATCH = "watch"
"""In guards and slices, the name that stands for a watch set instead of a column of the data."""


class EvaluationFacts(Facts):
    """Facts of the stage's manifest.

    Args:
        rows: held-out rows scored.
        champion: name of the version that was compared; empty: none.
        left_out: held-out rows that are not compared, because champion or candidate was trained on them, on near
            copies, or on their prompts; `ledger.parquet` has each.
        unknown: why such rows could not be found; empty if they could.
        champion_left_out: why a champion was not compared; empty if it was, or if there is none.
        scores: rows of `scores.parquet` for all held-out rows.
        watch: rows for the watch sets; `value` is the name of the set.
        health: figure of HEALTH → model → mean over rows.
        generation_seconds: of each model, for losses and answers.
        confidence: level of the intervals.
        stop: token ids that end an answer.
    """

    rows: int
    left_out: int = 0
    unknown: str = ""
    champion: str = ""
    champion_left_out: str = ""
    scores: list[dict[str, Any]]
    watch: list[dict[str, Any]] = Field([])
    health: dict[str, dict[str, float]]
    generation_seconds: dict[str, float]
    confidence: float
    stop: list[int]


class AnswerFacts(Facts):
    """How many rows have a kept loss or answer."""

    rows: int


class WatchFacts(Facts):
    """Rows of a watch set, and the text that ends its answers."""

    rows: int
    ending: str
