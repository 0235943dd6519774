"""Scores of answers, by the names that `evaluation.metrics` takes."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.config import METRICS
from tasks.errors import UserError
from tasks.evaluation.metrics.words import has_words


def check_references(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """Before anything is generated: every metric finds something to count in every reference.

    Raises:
        UserError: one does not, naming the row and the metrics.
    """
    counts_words = [name for name in metrics if name.startswith("rouge") or name == "token_f1"]
    counts_signs = [name for name in metrics if name == "chrf"]
    for names, has_any, what in ((counts_words, has_words, "word or number"), (counts_signs, str.strip, "character")):
        bad = [row["id"] for row in rows if not all(map(has_any, row["references"]))] if names else []
        if bad:
            more = f" and of {len(bad) - 1:,} more rows" if len(bad) > 1 else ""
            raise UserError(
                f"evaluation.metrics: a reference of held-out row {bad[0]!r}{more} has no {what} for "
                f"{', '.join(names)} to count: mend it, leave the row out of the data, or leave these metrics out."
            )


def try_own(row: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Score a row's reference with every metric of the user's own, whose mistakes show before anything is generated."""
    from tasks.evaluation.metrics.own import own_scores

    for name in metrics:
        if name not in METRICS:
            own_scores(name, [row["id"]], row["references"][:1], [row["references"]])


def scores(rows: Sequence[Mapping[str, Any]], who: str, metrics: Sequence[str], scratch: str) -> dict[str, list[float]]:
    """Metric → one score a row, for the answers of `base` or `tuned`; then the figures of `health`.

    Args:
        rows: id, prompt, references, the answer under `who`, under `<who>_ended` whether the model ended it, and under
            `<who>_loss` the loss, where that is asked for.
        scratch: a folder for what `evaluate` writes.
    Raises:
        UserError: a metric of the user's own fails.
    """
    from tasks.evaluation.metrics.exact_match.exact_match import ExactMatch
    from tasks.evaluation.metrics.health.health import Health
    from tasks.evaluation.metrics.own import own_scores
    from tasks.evaluation.metrics.rouge.rouge import Rouge
    from tasks.evaluation.metrics.token_f1.token_f1 import TokenF1

    texts = {"predictions": [row[who] for row in rows], "references": [row["references"] for row in rows]}
    found = {"loss": [row[f"{who}_loss"] for row in rows]} if "loss" in metrics else {}
    # not by `evaluate.load`, which imports a copy that lies in a folder that others may write to (HF_HOME)
    here: dict[str, Any] = {"cache_dir": scratch, "keep_in_memory": True}
    if rouge := [name for name in metrics if name.startswith("rouge")]:
        found |= Rouge(**here).compute(**texts, names=rouge)
    for name, metric in (("exact_match", ExactMatch), ("token_f1", TokenF1)):
        if name in metrics:
            found |= metric(**here).compute(**texts)
    if "chrf" in metrics:
        from tasks.evaluation.metrics.chrf.chrf import ChrF  # sacrebleu takes a while to import

        found |= ChrF(**here).compute(**texts)
    for name in metrics:
        if name not in METRICS:
            found[name] = own_scores(name, [row["id"] for row in rows], **texts)
    health = Health(**here).compute(
        **texts, prompts=[row["prompt"] for row in rows], ended=[row[f"{who}_ended"] for row in rows]
    )
    return {name: found[name] for name in metrics} | health
