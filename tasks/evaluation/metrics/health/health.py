"""Figures that show broken answers; only the length needs a reference.

A module for `evaluate.load(FOLDER)`. The means over rows are shares of the answers, and the mean length.
"""

from collections.abc import Sequence

import evaluate

from tasks.evaluation.metrics.rows import info
from tasks.evaluation.metrics.words import pieces

REPEATED, COPIED = 4, 8
"""Tokens of a run: Welleck et al. 2020, https://arxiv.org/abs/1908.04319, count repeated runs of four."""


class Health(evaluate.Metric):
    """`compute(predictions, references, prompts, ended)` → for each figure a list with one value a row.

    - empty: 1 where there is nothing but white space.
    - never_ending: 1 where the model made `max_new_tokens` tokens and no end (`ended` is false).
    - repeating: 1 where more than half of the answer's runs of four tokens have stood in it before.
    - copied: 1 where more than half of its runs of eight tokens stand in the prompt.
    - length: tokens of the answer over those of the reference that is nearest in length.
    """

    def _info(self) -> evaluate.MetricInfo:
        return info(__doc__, prompts="string", ended="bool")

    def _compute(
        self, predictions: list[str], references: list[list[str]], prompts: list[str], ended: list[bool]
    ) -> dict[str, list[float]]:
        answers = [pieces(text) for text in predictions]
        rows = list(zip(answers, references, prompts, strict=True))
        return {
            "empty": [float(not text.strip()) for text in predictions],
            "never_ending": [float(not end) for end in ended],
            "repeating": [_repeating(answer) for answer in answers],
            "copied": [_copied(answer, prompt) for answer, _, prompt in rows],
            "length": [_length(len(answer), [len(pieces(text)) for text in targets]) for answer, targets, _ in rows],
        }


def _runs(tokens: Sequence[str], length: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]


def _repeating(answer: Sequence[str]) -> float:
    runs = _runs(answer, REPEATED)
    return float(2 * len(set(runs)) < len(runs))


def _copied(answer: Sequence[str], prompt: str) -> float:
    if not (runs := _runs(answer, COPIED)):
        return 0.0
    there = set(_runs(pieces(prompt), COPIED))
    return float(2 * sum(run in there for run in runs) > len(runs))


def _length(answer: int, references: Sequence[int]) -> float:
    return answer / max(1, min(references, key=lambda tokens: abs(tokens - answer)))
