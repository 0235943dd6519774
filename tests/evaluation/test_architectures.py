"""Every architecture of transformers that can be made tiny is answered as `generate` does, or left to it."""

from types import SimpleNamespace

import torch
from transformers import GenerationConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tasks.evaluation.cached import Unsupported
from tasks.evaluation.engine import Engine
from tests.architectures import tiny

LENGTHS = (3, 20, 12)  # the windows of those that have one are 8 tokens wide


def plain_answers(model, prompts):
    model.generation_config = GenerationConfig()
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": [2], "pad_token_id": 0}
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
