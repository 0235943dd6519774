"""Held-out loss is what transformers computes for each row alone, in float32."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported; see tasks/process/quiet.py

from typing import Any

import pytest
import torch
from transformers import CohereConfig, GraniteConfig

from tasks.errors import UserError
from tasks.evaluation.answers import engine, generate, loss
from tasks.training.packing import Row
from tests.evaluation.test_engine import (  # noqa: F401
    BASES,
    FLOAT32,
    SHAPE,
    STOP,
    made,
    nothing,
    plain,
    plain_answers,
    prompts,
)

BASES["cohere"] = lambda: CohereConfig(**SHAPE, logit_scale=0.3)
BASES["granite"] = lambda: GraniteConfig(**SHAPE, logits_scaling=3.0)


def held_out() -> list[Row]:
    """The answer is the last third of a row; in the second row an earlier part is learnt as well."""
    rows = [torch.tensor(ids) for ids in prompts([30, 12, 2, 19, 7, 64])]
    labels = [torch.where(torch.arange(len(ids)) < len(ids) - max(1, len(ids) // 3), -100, ids) for ids in rows]
    labels[1][2:4] = rows[1][2:4]
    return [Row(*pair) for pair in zip(rows, labels, strict=True)]


def plain_losses(model: Any, rows: list[Row]) -> list[float]:
    with torch.no_grad():
        return [float(model(input_ids=row.input_ids[None], labels=row.labels[None]).loss) for row in rows]


def test_a_row_read_alone_that_does_not_fit_is_named(made, monkeypatch) -> None:  # noqa: F811
    """The engine does not support gemma2. Rows before the one that does not fit were computed."""
    model, rows, done = generate.load(*made("gemma2"), FLOAT32), held_out(), list[int]()
    layers: Any = model.get_base_model().base_model
    usual = layers.forward

    def forward(input_ids: torch.Tensor, **options: Any) -> Any:
        if input_ids.shape[1] > 30:
            raise torch.OutOfMemoryError("no room")
        return usual(input_ids=input_ids, **options)

    monkeypatch.setattr(layers, "forward", forward)
    with pytest.raises(UserError, match=r"for the loss of a row of 64 tokens; lower tokenization\.max_length"):
        generate.losses(model, rows, nothing, lambda share, count: done.append(count))
    assert done == [1, 2, 3, 4, 5]


CASES = [(base, "lora") for base in ("llama", "qwen3", "mistral", "gemma3", "cohere", "granite", "gemma2")]
"""The engine does not support gemma2, which caps its attention logits: its rows are read one by one."""


@pytest.mark.parametrize(("base", "adapter"), [*CASES, ("llama", "dora"), ("llama", "whole")])
def test_losses_are_those_of_each_row_alone(made, monkeypatch, base: str, adapter: str) -> None:  # noqa: F811
    """Several rows a pass, and the head on a few tokens at once; the adapter on, then off."""
    monkeypatch.setitem(engine._PREFILL_TOKENS, "cpu", 50)
    monkeypatch.setitem(loss.LOGIT_BYTES, "cpu", 4 * SHAPE["vocab_size"] * 3)
    folders, rows = made(base, adapter), held_out()
    ours, theirs = generate.load(*folders, FLOAT32), plain(*folders)
    tuned = generate.losses(ours, rows, nothing, nothing)
    assert tuned == pytest.approx(plain_losses(theirs, rows), rel=1e-4)
    asked, found = [row.input_ids[: len(row.input_ids) - max(1, len(row.input_ids) // 3)].tolist() for row in rows], {}
    answers = generate.answer(ours, asked, STOP, 5, 0, nothing)
    assert generate.answer(ours, asked, STOP, 5, 60, nothing, rows, found) == answers  # prompts and targets in one pass
    assert found == ({} if base == "gemma2" else pytest.approx(dict(enumerate(tuned)), rel=1e-4))
    with ours.disable_adapter(), theirs.disable_adapter():
        alone = generate.losses(ours, rows, nothing, nothing)
        assert alone == pytest.approx(plain_losses(theirs, rows), rel=1e-4)
    assert alone != pytest.approx(tuned, rel=1e-2)


def test_what_prompts_begin_with_is_read_once(made, monkeypatch) -> None:  # noqa: F811
    """Up to the first token whose hidden state is needed; `saved`: tokens that are not read again."""
    monkeypatch.setitem(engine._PREFILL_TOKENS, "cpu", 40)
    read: list[int] = []
    usual = engine.Passes.hidden
    monkeypatch.setattr(engine.Passes, "hidden", lambda *given: (read.append(len(given[1])), usual(*given))[1])
    one, other = prompts([20, 9])
    two_groups = [one + prompts([3])[0], other, [*one, 5], [7, 8], [*other, 6, 7]]
    for base in ("llama", "mistral"):
        folders = made(base)
        ours, theirs = generate.load(*folders, FLOAT32), plain(*folders)
        for asked, learnt, saved in (
            ([one + ids for ids in prompts([5, 1, 30])], None, 3 * 20 - 20),
            ([one, [*one, 7]], None, 19 + 20 - 20),
            ([one + ids for ids in prompts([5, 9])], 11, 10 + 10 - 20),  # a part of what they share is learnt
            ([one[:6] + ids for ids in prompts([5, 1])], None, 0),
            (two_groups, None, 20 + 20 - 20 + 8 + 9 - 9),
        ):
            want = [generate.until(ids, STOP) for ids in plain_answers(theirs, asked, 9)]
            rows = [torch.tensor([*ids, 8, 9, 10]) for ids in asked]
            labels = [torch.where(torch.arange(len(ids)) < len(ids) - 3, -100, ids) for ids in rows]
            for each, ids in zip(labels, rows, strict=True):
                if learnt:
                    each[learnt : learnt + 2] = ids[learnt : learnt + 2]
            whole, found = [Row(*pair) for pair in zip(rows, labels, strict=True)], {}
            assert generate.answer(ours, asked, STOP, 9, 0, nothing) == want
            read.clear()
            assert generate.answer(ours, asked, STOP, 9, 0, nothing, whole, found) == want
            assert found == pytest.approx(dict(enumerate(plain_losses(theirs, whole))), rel=1e-4)
            assert sum(n for n in read if n > len(asked)) == 9 + sum(map(len, rows)) - saved  # 9: the engine's trial
