"""Exact match: 1 for an answer that is one of its references, else 0.

A module for `evaluate.load(FOLDER)`. Case and punctuation count; white space counts as one space, and a character has
one spelling (NFC).
"""

import unicodedata

import evaluate

from tasks.evaluation.metrics.rows import best, info


class ExactMatch(evaluate.Metric):
    """`compute(predictions=[text], references=[[text, …]])` → `{"exact_match": [0 or 1 for each row]}`"""

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, list[float]]:
        return {"exact_match": best(lambda a, b: float(_spelt(a) == _spelt(b)), predictions, references)}


def _spelt(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
