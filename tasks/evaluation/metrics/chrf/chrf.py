"""chrF: runs of one to six characters that answer and reference share, recall counting twice as much as precision.

A module for `evaluate.load(FOLDER)`. The F-score of `sacrebleu` with its defaults (Popović 2015,
https://aclanthology.org/W15-3049), for each row, in [0, 1]; the best reference counts. It needs no words, so it suits
every script.
"""

import unicodedata

import evaluate
from sacrebleu.metrics.chrf import CHRF

from tasks.evaluation.metrics.rows import best, info


class ChrF(evaluate.Metric):
    """`compute(predictions=[text], references=[[text, …]])` → `{"chrf": [a score for each row]}`"""

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, list[float]]:
        chrf = CHRF()

        def score(answer: str, reference: str) -> float:
            answer, reference = (unicodedata.normalize("NFC", text) for text in (answer, reference))
            return float(chrf.sentence_score(answer, [reference]).score) / 100

        return {"chrf": best(score, predictions, references)}
