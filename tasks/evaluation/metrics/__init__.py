"""Scores of answers by the names of `evaluation.metrics`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tasks.config import METRICS
from tasks.errors import UserError
from tasks.evaluation.metrics.words import has_words


def check_references(rows: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> None:
    """Before answers are generated: raises UserError if a reference has nothing that a metric can count."""
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
    """Before answers are generated: call every metric of the user's own with one reference, to find errors early."""
    from tasks.evaluation.metrics.own import own_scores

    for name in metrics:
        if name not in METRICS:
            own_scores(name, [row["id"]], row["references"][:1], [row["references"]])


def scores(rows: Sequence[Mapping[str, Any]], who: str, metrics: Sequence[str], scratch: str) -> dict[str, list[float]]:
    """Metric → one score a row for the answers of a model, then the figures of `health`.

    Args:
        rows: id, prompt, references; the answer under `who`, whether the model ended it under `<who>_ended`, and its
            loss under `<who>_loss`, if that is a metric.
        scratch: a folder for the files of `evaluate`.
    Raises:
        UserError: a loss is not finite, or a metric of the user's own fails.
    """
    from tasks.evaluation.metrics.exact_match.exact_match import ExactMatch
    from tasks.evaluation.metrics.health.health import Health
    from tasks.evaluation.metrics.own import own_scores
    from tasks.evaluation.metrics.rouge.rouge import Rouge
    from tasks.evaluation.metrics.token_f1.token_f1 import TokenF1

    if "loss" in metrics and (bad := [row["id"] for row in rows if not math.isfinite(row[f"{who}_loss"])]):
        more = f" and on {len(bad) - 1:,} more rows" if bad[1:] else ""
        raise UserError(
            f"evaluation: the loss of {who} on row {bad[0]!r}{more} is no finite number. "
            "Where float16 overflows, set training.compute_dtype to bfloat16; else the base itself is damaged."
        )
    texts = {"predictions": [row[who] for row in rows], "references": [row["references"] for row in rows]}
    found = {"loss": [row[f"{who}_loss"] for row in rows]} if "loss" in metrics else {}
    # without `evaluate.load`, which imports a copy from a folder to which others may write (HF_HOME)
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
