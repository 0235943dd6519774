"""Token F1: the words (characters, where a script has no spaces) that answer and reference share, in any order.

A module for `evaluate.load(FOLDER)`. The harmonic mean of precision and recall, as in SQuAD (Rajpurkar et al. 2016,
https://arxiv.org/abs/1606.05250), in [0, 1]; articles count, the best reference counts, and nothing is stemmed.
"""

from collections import Counter

import evaluate

from tasks.evaluation.metrics.rows import best, info
from tasks.evaluation.metrics.words import words


class TokenF1(evaluate.Metric):
    """`compute(predictions=[text], references=[[text, …]])` → `{"token_f1": [a score for each row]}`"""

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, list[float]]:
        return {"token_f1": best(_f1, predictions, references)}


def _f1(answer: str, reference: str) -> float:
    given, wanted = Counter(words(answer)), Counter(words(reference))
    return 2 * (given & wanted).total() / max(1, given.total() + wanted.total())
