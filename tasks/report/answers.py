"""Answers side by side: largest gains, largest losses and a random sample, with the differences marked."""

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.config import metric as metric_of
from tasks.report import charts
from tasks.report.tables import read, rows_at
from tasks.text import LONGEST_EXCERPT, Part, excerpt

EACH = 4
"""Rows of each kind that are shown."""
ALIKE = 0.5
"""Differences are marked from this share of common words on."""
MOST_PAIRS = 500_000
"""Of a word with an equal one in the other text."""
_WORD = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|\w+|\s+|.", re.S
)  # single characters in scripts without spaces


def answers(folder: Path, metric: str, champion: str) -> dict[str, Any]:
    """Rows by their gain in a metric over the champion (empty: over the base)."""
    from tasks.evaluation.schema import PREDICTIONS

    file, other = folder / PREDICTIONS, "champion" if champion else "base"
    table = read(file, ["id", f"{other}_{metric}", f"tuned_{metric}"])
    ids, before, after = (column.to_pylist() for column in table.columns)
    gains = [metric_of(metric).gain(new - old) for old, new in zip(before, after, strict=True)]
    ranked = sorted(range(len(ids)), key=lambda n: (-gains[n], n))
    shown = {
        "Largest gains": [n for n in ranked if gains[n] > 0][:EACH],
        "Largest losses": [n for n in ranked[::-1] if gains[n] < 0][:EACH],
    }
    left = set(ranked) - {n for numbers in shown.values() for n in numbers}
    shown["A random sample"] = sorted(left, key=lambda n: hashlib.sha256(ids[n].encode()).digest())[:EACH]
    rows = rows_at(file, {n for numbers in shown.values() for n in numbers})
    return {
        "chart": charts.sorted_bars("Gain by row", "held-out rows, lowest gain to highest", gains),
        "better": sum(gain > 0 for gain in gains),
        "worse": sum(gain < 0 for gain in gains),
        "equal": sum(gain == 0 for gain in gains),
        "title": metric_of(metric).title,
        "other": champion or "the base",
        "kinds": [(kind, [answer_row(rows[n], metric, other) for n in numbers]) for kind, numbers in shown.items()],
    }


def answer_row(row: Mapping[str, Any], metric: str, other: str) -> dict[str, Any]:
    """One row; `other` is the model (`base` or `champion`) with which the new answer is compared word by word."""
    old, new = marked(row[other], row["tuned"])
    texts = {"base": excerpt(row["base"]), "champion": None, other: old, "tuned": new}
    return {
        "id": row["id"],
        "before": row[f"{other}_{metric}"],
        "after": row[f"tuned_{metric}"],
        "answers": [(who, text, row[f"{who}_{metric}"]) for who, text in texts.items() if text is not None],
        "prompt": excerpt(row["prompt"], times=4),
        "references": [excerpt(text) for text in row["references"][:5]],
        "more_references": max(0, len(row["references"]) - 5),
    }


def marked(old: str, new: str) -> tuple[list[Part], list[Part]]:
    """Two texts as parts: `gone` are words of the old text alone, `new` those of the new text alone.

    Nothing is marked in long texts, if little is common, or if words are repeated so often that it would take seconds.
    """
    if max(len(old), len(new)) > LONGEST_EXCERPT:
        return excerpt(old), excerpt(new)
    ours, theirs = _WORD.findall(old), _WORD.findall(new)
    often = Counter(theirs)
    found = difflib.SequenceMatcher(None, ours, theirs, autojunk=False)
    if sum(often[word] for word in ours) > MOST_PAIRS or found.ratio() < ALIKE:
        return excerpt(old), excerpt(new)
    sides: tuple[list[Part], list[Part]] = ([], [])
    for kind, a, b, c, d in found.get_opcodes():
        for side, words, mark in zip(sides, (ours[a:b], theirs[c:d]), ("gone", "new"), strict=True):
            if words:
                side.append(("text" if kind == "equal" else mark, "".join(words)))
    return sides[0] or [("text", "")], sides[1] or [("text", "")]
