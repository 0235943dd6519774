"""What evaluation notes of its results."""

from typing import Any

from tasks.store.facts import Facts


class EvaluationFacts(Facts):
    """What the manifest notes.

    Args:
        rows: held-out rows scored.
        champion: name of the version that was compared; empty: none.
        left_out: held-out rows that are not compared, because the champion was trained on them, on near copies, or on
            their prompts; `ledger.parquet` has each.
        unknown: why such rows could not be found; empty where they could.
        champion_left_out: why a champion was not compared; empty where it was, or where there is none.
        scores: rows of `scores.parquet`.
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
    health: dict[str, dict[str, float]]
    generation_seconds: dict[str, float]
    confidence: float
    stop: list[int]


class AnswerFacts(Facts):
    """Rows of a model's kept losses and answers."""

    rows: int
