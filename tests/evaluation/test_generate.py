"""Batched answers are the answers of one row at a time, in whatever memory there is."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.errors import UserError
from tasks.evaluation.answers import generate
from tasks.evaluation.answers.generate import _plainly, answer, load, stop_ids, until
from tasks.model.lora import LoraGroup

TRAINING = {"quantization": "4bit", "quant_type": "nf4", "compute_dtype": "float32", "double_quant": False}


def make_adapter(base: Path, folder: Path, dora: bool = False) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(target_modules="all-linear", init_lora_weights=False, use_dora=dora),
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny_model, tmp_path_factory.mktemp("adapter"))


def test_the_base_has_the_weights_of_training(tiny_model: Path, adapter: Path) -> None:
    import bitsandbytes.functional as functional
    from transformers import AutoModelForCausalLM

    plain = (
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).model.layers[0].self_attn.q_proj.weight
    )
    quantized, state = functional.quantize_4bit(plain.data, quant_type="nf4")
    loaded = load(tiny_model, adapter, TRAINING).get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight
    assert torch.equal(loaded, functional.dequantize_4bit(quantized, state))
    assert not torch.equal(loaded, plain)


def test_a_base_that_stays_in_4_bits_answers_the_same(tiny_model: Path, adapter: Path, monkeypatch) -> None:
    prompts = [[5, 6, 7], list(range(9, 20))]
    want = answer(load(tiny_model, adapter, TRAINING), prompts, [1], 8, 0, lambda line: None)
    monkeypatch.setattr(generate, "_room_for", lambda *_: False)
    packed = load(tiny_model, adapter, TRAINING)
    assert packed.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.dtype == torch.uint8
    assert answer(packed, prompts, [1], 8, 0, lambda line: None) == want


def test_magnitudes_of_dora_are_not_rounded(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path, dora=True)
    model = load(tiny_model, folder, TRAINING | {"compute_dtype": "bfloat16"})
    saved = load_file(folder / "adapter_model.safetensors")
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            assert torch.equal(parameter, saved[name.removesuffix(".default.weight")]), name
    assert len(answer(model, [[5, 6, 7]], [1], 8, 0, lambda line: None)[0]) > 0


def test_the_bases_own_way_of_generating_is_not_used(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    want = answer(load(tiny_model, adapter, TRAINING), [[5, 6, 7]], [1], 8, 0, lambda line: None)
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "generation_config.json").write_text(
        '{"repetition_penalty": 9.0, "num_beams": 3, "no_repeat_ngram_size": 1}'
    )
    assert answer(load(base, adapter, TRAINING), [[5, 6, 7]], [1], 8, 0, lambda line: None) == want


def test_norms_of_dora_are_computed_once(tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    """When the adapter is loaded, not at every token."""
    norms: list[LoraGroup] = []
    renew = LoraGroup.renew_norms
    monkeypatch.setattr(LoraGroup, "renew_norms", lambda group: norms.append(group) or renew(group))
    model = load(tiny_model, make_adapter(tiny_model, tmp_path, dora=True), TRAINING)
    answer(model, [[5, 6, 7]], [1], 8, 0, lambda line: None)
    assert len(norms) == len(set(norms)) > 0


def made_up(sizes: list[tuple[int, int]], holds: int):
    """A `_generate` that answers each prompt with its first id, and whose memory holds so many prompt tokens."""

    def answering(model, prompts, stop, max_new_tokens):
        sizes.append((len(prompts), len(prompts[0])))
        assert len(prompts[0]) == max(map(len, prompts))
        if len(prompts) * len(prompts[0]) > holds:
            raise torch.OutOfMemoryError("no room")
        return [[prompt[0], 1, 0] for prompt in prompts]

    return answering


def plainly(prompts, batch_tokens, report=lambda line: None):
    return _plainly(None, prompts, [1], 8, batch_tokens, report, lambda share, done: None)


LENGTHS = [5, 90, 7, 30, 30, 1, 200]


def test_batches_stay_below_the_limit_and_lose_nothing(monkeypatch) -> None:
    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(generate, "_generate", made_up(sizes, 10**9))
    prompts = [[10 + number] * length for number, length in enumerate(LENGTHS)]
    assert plainly(prompts, 100) == [[10 + number, 1, 0] for number in range(7)]
    assert sizes == [(1, 200), (1, 90), (3, 30), (2, 5)]


def test_out_of_memory_halves_what_is_answered_at_once(monkeypatch) -> None:
    sizes: list[tuple[int, int]] = []
    said: list[str] = []
    monkeypatch.setattr(generate, "_generate", made_up(sizes, 200))
    prompts = [[10 + number] * length for number, length in enumerate(LENGTHS)]
    assert plainly(prompts, 800, said.append) == [[10 + number, 1, 0] for number in range(7)]
    assert sizes == [(4, 200), (2, 200), (1, 200), (2, 90), (4, 30)]
    assert said[0] == "out of memory: 400 prompt tokens at once from here on"


def test_a_row_that_does_not_fit_alone_is_named(monkeypatch) -> None:
    monkeypatch.setattr(generate, "_generate", made_up([], 100))
    with pytest.raises(UserError, match="a prompt of 200 tokens with up to 8 new ones"):
        plainly([[5] * 200, [5] * 90], 800)


def test_an_answer_ends_before_the_first_stop_of_tokenizer_or_model(tmp_path: Path) -> None:
    assert until([4, 5, 2, 6], [1, 2]) == [4, 5] == until([4, 5], [1, 2])
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert stop_ids(tmp_path, 9) == [9, 7]
