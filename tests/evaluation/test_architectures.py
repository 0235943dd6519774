"""Every architecture of transformers that can be made tiny is answered as `generate` does, or left to it."""

from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tasks.evaluation.answers import generate
from tasks.evaluation.answers.cached import Unsupported
from tasks.evaluation.answers.engine import Engine
from tests.architectures import tiny

LENGTHS = (3, 20, 12)  # the windows of those that have one are 8 tokens wide


def plain_answers(model, prompts, most=6):
    model.generation_config = GenerationConfig()
    options = {"max_new_tokens": most, "do_sample": False, "eos_token_id": [2], "pad_token_id": 0}
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        found.append(model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :])
    return [ids.tolist() for ids in found]


def test_no_base_is_answered_wrongly():
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 97, (length,), generator=generator).tolist() for length in LENGTHS]
    right, left, wrong = set(), set(), {}
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if (model := tiny(name)) is None:
            continue
        try:
            want = plain_answers(model, prompts)
        except Exception:  # it takes more than ids, or other shapes
            continue
        try:
            engine = Engine(SimpleNamespace(get_base_model=lambda model=model: model))
        except Unsupported:
            left.add(name)
            continue
        got = engine.answer(prompts, [2], 6, 0, lambda line: None)
        (right.add(name) if got == want else wrong.update({name: (got, want)}))
    assert not wrong
    assert {"llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "gemma", "gemma3_text", "phi3", "olmo2"} <= right
    assert {"gemma2", "gpt_oss", "mamba", "bert", "moshi"} <= left


@pytest.mark.parametrize("name", ["gpt2", "opt"])
@pytest.mark.parametrize("by", ["engine", "generate"])
def test_an_answer_ends_where_a_table_of_positions_does(name: str, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(name)
    assert model is not None
    limit = model.config.max_position_embeddings
    prompts = [[7] * length for length in (limit, limit - 2, 10)]
    if by == "generate":

        def unsupported(model: object) -> None:
            raise Unsupported("a test says so")

        monkeypatch.setattr(generate, "Engine", unsupported)
    wrapped = SimpleNamespace(get_base_model=lambda: model, generate=model.generate, device=model.device)
    answers = generate.answer(wrapped, prompts, [2], 12, 0, lambda line: None)
    assert [len(ids) for ids in answers] == [0, 2, 12]
    assert answers[1] == plain_answers(model, [prompts[1][:]], 2)[0]
