"""A run that is slower than the last one on the same hardware says so."""

import pytest

from tasks.training.facts import TrainingFacts
from tasks.training.task import slower

RUN = TrainingFacts.model_construct(device="H100", model="/m", speed="fast", steps=60, tokens_per_second=1000.0)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"tokens_per_second": 840.0}, "840 tokens/s instead of 1,000 (-16%)"),
        ({"tokens_per_second": 860.0}, ""),
        ({"tokens_per_second": 400.0, "device": "A100"}, ""),
        ({"tokens_per_second": 400.0, "model": "/other"}, ""),
        ({"tokens_per_second": 400.0, "speed": "lean"}, ""),
        ({"tokens_per_second": 400.0, "steps": 3}, ""),
    ],
)
def test_only_a_slower_run_of_the_same_kind(change, says):
    sentence = slower(RUN.model_copy(update=change), RUN)
    assert says in sentence and bool(says) == bool(sentence)


def test_the_first_run_has_nothing_to_be_compared_with():
    assert slower(RUN, None) == ""
