"""Scores as sentences and tables, for terminal, Prefect artifact, report and model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.config import metric
from tasks.evaluation.facts import WATCH, EvaluationFacts
from tasks.text import code, visible

FEW = 30
"""With fewer groups of rows than this, an interval is rough."""


def score_table(scores: Sequence[Mapping[str, Any]], percent: str) -> list[list[str]]:
    """A line of titles, and one for each row of `scores.parquet`; `percent` is the level of the intervals."""
    third = ["champion"] if scores and scores[0].get("champion") is not None else []
    titles = ["metric", "base", *third, "tuned", "tuned − base", f"{percent} % interval"]
    return [
        [*titles, *(["tuned − champion", f"{percent} % interval"] if third else [])],
        *(
            [
                _of(s) + metric(s["metric"]).label,
                *(f"{s[who]:.4f}" for who in ("base", *third, "tuned")),
                *(cell for prefix in ("", *("champion_" for _ in third)) for cell in _difference(s, prefix)),
            ]
            for s in scores
        ),
    ]


def _of(score: Mapping[str, Any]) -> str:
    """The watch set or slice of a line; empty for all held-out rows."""
    if not score.get("slice"):
        return ""
    column = "" if score["slice"] == WATCH else f"{score['slice']} = "
    rough = "" if (score["groups"] or 0) >= FEW else ", rough"
    return f"{column}{visible(score['value'], 80)} ({score['rows']:,}{rough}): "


def _difference(score: Mapping[str, Any], prefix: str) -> tuple[str, str]:
    """Difference and interval, as text."""
    difference, low, high = (score[prefix + name] for name in ("difference", "low", "high"))
    return f"{difference:+.4f}", "none" if low is None else f"{low:+.4f} to {high:+.4f}"


def health_table(health: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """A line of titles, and one for each figure of the answers."""
    models = list(next(iter(health.values()), {}))
    return [
        ["answers", *models],
        *([name.replace("_", " "), *(f"{h[who]:.3f}" for who in models)] for name, h in health.items()),
    ]


def markdown(table: Sequence[Sequence[str]]) -> str:
    """The table in Markdown; the name of a metric of the user's own is code."""
    titles, *lines = table
    own = [[code(line[0]) if ":" in line[0] else line[0], *line[1:]] for line in lines]
    bars = ["---", *["---:"] * (len(titles) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (titles, bars, *own))


def finding(score: Mapping[str, Any], prefix: str = "") -> str:
    """`better`, `worse`, `undecided`, or `single` if there is no interval because there is one group of rows."""
    low, high = score[f"{prefix}low"], score[f"{prefix}high"]
    if low is None:
        return "single"
    if low <= 0 <= high:
        return "undecided"
    return "better" if metric(score["metric"]).gain(low) > 0 else "worse"


def verdict(scores: Sequence[Mapping[str, Any]]) -> str:
    """The finding for the first metric as a sentence; empty without scores."""
    if not scores:
        return ""
    score = scores[0]
    said = {
        "better": "Better than the base",
        "worse": "Worse than the base",
        "undecided": "No better or worse than the base beyond noise",
        "single": "Undecided, since a single held-out row or group allows no interval",
    }[finding(score)]
    bounds = "" if score["low"] is None else f", interval {score['low']:+.3f} to {score['high']:+.3f}"
    how = " (lower is better)" if metric(score["metric"]).lower_is_better else ""
    title = metric(score["metric"]).title
    return f"{said}: {title} {score['difference']:+.3f} on {held_out(score['rows'])}{bounds}{how}."


def held_out(rows: int) -> str:
    """`1 held-out row`, `60 held-out rows`"""
    return f"{rows:,} held-out row{'' if rows == 1 else 's'}"


def left_out(facts: EvaluationFacts) -> str:
    """How many held-out rows are not compared because they were trained on, as sentences; empty for none."""
    said = ""
    if facts.left_out:
        said = f"Left out, because a compared adapter was trained on them: {held_out(facts.left_out)}."
    unknown = f"{facts.unknown[:1].upper()}{facts.unknown[1:]}." if facts.unknown else ""
    return f"{said} {unknown}".strip()


def version_table(told: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A line of titles, and one for each version that `tasks.report.versions.beside` returns, newest last."""
    scored = told[-1]["scores"] if told else {}
    metrics = [*list(scored)[:1], *(name for name in ("rougeL", "chrf") if name in list(scored)[1:])]
    titles = ["version", "decision", "rows", "held out", *(metric(name).label for name in metrics)]
    return [
        [*titles, "training loss", "tokens/s", "minutes"],
        *(
            [
                v["version"],
                v["decision"],
                _number(v["rows"], ",.0f"),
                _number(v["held_out"], ",.0f"),
                *(_number(v["scores"].get(name), ".4f") for name in metrics),
                _number(v["loss"], ".4f"),
                _number(v["tokens_per_second"], ",.0f"),
                _number(v["seconds"] and v["seconds"] / 60, ",.1f"),
            ]
            for v in told
        ),
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
