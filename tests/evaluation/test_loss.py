"""Held-out loss is what transformers computes for each row alone, in float32."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch is imported; see tasks/process/quiet.py

from typing import Any

import pytest
import torch
from transformers import CohereConfig, GraniteConfig

from tasks.errors import UserError
from tasks.evaluation.answers import generate, loss
from tasks.training.packing import Row
from tests.evaluation.test_engine import BASES, FLOAT32, SHAPE, STOP, made, nothing, plain, prompts  # noqa: F401

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


CASES = [(base, "lora") for base in ("llama", "qwen3", "mistral", "gemma3", "cohere", "granite")]


@pytest.mark.parametrize(("base", "adapter"), [*CASES, ("llama", "dora"), ("llama", "whole")])
def test_losses_are_those_of_each_row_alone(made, monkeypatch, base: str, adapter: str) -> None:  # noqa: F811
    """Several rows a pass, and the head on a few tokens at once; the adapter on, then off."""
    monkeypatch.setitem(loss._PASS_TOKENS, "cpu", 50)
    monkeypatch.setitem(loss.LOGIT_BYTES, "cpu", 4 * SHAPE["vocab_size"] * 3)
    folders, rows = made(base, adapter), held_out()
    ours, theirs = generate.load(*folders, FLOAT32), plain(*folders)
    tuned = loss.losses(ours, rows, nothing, nothing)
    assert tuned == pytest.approx(plain_losses(theirs, rows), rel=1e-4)
    asked, found = [row.input_ids[: len(row.input_ids) - max(1, len(row.input_ids) // 3)].tolist() for row in rows], {}
    answers = generate.answer(ours, asked, STOP, 5, 0, nothing)
    assert generate.answer(ours, asked, STOP, 5, 60, nothing, rows, found) == answers  # prompts and targets in one pass
    assert [found[n] for n in range(len(rows))] == pytest.approx(tuned, rel=1e-4)
    with ours.disable_adapter(), theirs.disable_adapter():
        alone = loss.losses(ours, rows, nothing, nothing)
        assert alone == pytest.approx(plain_losses(theirs, rows), rel=1e-4)
    assert alone != pytest.approx(tuned, rel=1e-2)


def test_out_of_memory_halves_a_pass_and_loses_nothing(made, monkeypatch) -> None:  # noqa: F811
    model, rows, said, sizes = generate.load(*made("llama"), FLOAT32), held_out(), list[str](), list[int]()
    want = loss.losses(model, rows, nothing, nothing)
    usual = loss._mean_losses

    def short(base: Any, some: list[Row]) -> list[float]:
        sizes.append(sum(len(row.input_ids) for row in some))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError("no room")
        return usual(base, some)

    monkeypatch.setattr(loss, "_mean_losses", short)
    limit, progress = 70, list[tuple[float, int]]()
    got = loss.losses(model, rows, said.append, lambda *done: progress.append(done))
    assert got == pytest.approx(want, rel=1e-5)
    assert sizes[:2] == [134, 66] and len(said) == 1 and progress[-1] == (1, 6)
    assert said == ["out of memory: 67 tokens of held-out rows at once from here on"]
    limit = 63
    with pytest.raises(UserError, match="the loss of a row of 64 tokens"):
        loss.losses(model, rows, nothing, nothing)
    assert model.get_base_model().config._attn_implementation == "sdpa"


def test_a_model_that_cannot_be_packed_is_refused(made) -> None:  # noqa: F811
    with pytest.raises(UserError, match="caps its attention logits"):
        loss.losses(generate.load(*made("gemma2"), FLOAT32), held_out(), nothing, nothing)
