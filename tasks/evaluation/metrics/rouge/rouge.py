"""ROUGE-1/2/L/Lsum of each answer against its references, the best reference counting.

A module for `evaluate.load(FOLDER)`, shipped here so that nothing is fetched. Scores are F-measures in [0, 1] from the
`rouge_score` package (Lin 2004, https://aclanthology.org/W04-1013), with stemming. Its own tokenizer drops every
character beyond a to z and 0 to 9; the one here gives the same tokens for ASCII text, and reads every script.
"""

import evaluate
from rouge_score import rouge_scorer, tokenizers

from tasks.evaluation.metrics.rows import info
from tasks.evaluation.metrics.words import stems

NAMES = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


class Rouge(evaluate.Metric):
    """`compute(predictions=[text], references=[[text, …]])` → for each of `names` a list with one score a row."""

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__)

    def _compute(
        self, predictions: list[str], references: list[list[str]], names: list[str] | None = None
    ) -> dict[str, list[float]]:
        names = names or NAMES
        scorer = rouge_scorer.RougeScorer(names, tokenizer=_Stems())
        rows = [scorer.score_multi(targets, answer) for answer, targets in zip(predictions, references, strict=True)]
        return {name: [float(row[name].fmeasure) for row in rows] for name in names}


class _Stems(tokenizers.Tokenizer):
    def tokenize(self, text: str) -> list[str]:
        return stems(text)
