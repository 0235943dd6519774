"""Batched answers are the answers of one row at a time."""

from pathlib import Path

import pytest
import torch

from tasks.evaluation.generate import answer, batches, load, stop_ids, until

TRAINING = {"quantization": "4bit", "quant_type": "nf4", "compute_dtype": "float32", "double_quant": False}


@pytest.fixture(scope="module")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        LoraConfig(target_modules="all-linear", init_lora_weights=False),
    )
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


def test_padding_changes_no_answer(tiny_model: Path, adapter: Path) -> None:
    model = load(tiny_model, adapter, TRAINING)
    prompts = [list(range(5, 5 + length)) for length in (3, 9, 4, 17)]
    together = answer(model, prompts, [1], 8, 8192, lambda line: None)
    alone = [answer(model, [prompt], [1], 8, 8192, lambda line: None)[0] for prompt in prompts]
    assert together == alone
    assert len({tuple(ids) for ids in together}) > 1


def test_the_adapter_makes_the_difference(tiny_model: Path, adapter: Path) -> None:
    model = load(tiny_model, adapter, TRAINING)
    tuned = answer(model, [[5, 6, 7]], [1], 8, 8192, lambda line: None)
    with model.disable_adapter():
        assert answer(model, [[5, 6, 7]], [1], 8, 8192, lambda line: None) != tuned


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


def test_batches_stay_below_the_limit_and_lose_nothing() -> None:
    lengths = [5, 90, 7, 30, 30, 1, 200]
    found = list(batches(lengths, 100))
    assert sorted(index for batch in found for index in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 100 for batch in found)


def test_an_answer_ends_before_the_first_stop() -> None:
    assert until([4, 5, 2, 6], [1, 2]) == [4, 5]
    assert until([4, 5], [1, 2]) == [4, 5]


def test_the_models_own_stops_count_too(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert stop_ids(tmp_path, 9) == [9, 7]
