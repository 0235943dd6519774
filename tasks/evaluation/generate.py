"""Greedy answers of the base and of base plus adapter, from one model in memory."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from peft.helpers import DoraCaching
from peft.utils import load_peft_weights
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from tasks.errors import UserError
from tasks.model.quantization import load_options

REPORT_SECONDS = 5.0
_EXPANDED_SHARE = 0.75  # of a GPU's memory that expanded weights may take; the rest is for the answers


def load(base: Path, adapter: Path, training: dict[str, Any]) -> PeftModel:
    """The base with the very weights the adapter was trained on, and the adapter over it.

    A base trained in 4 bits is quantized the same way and, where there is room, expanded once: the same numbers as in
    training, without the cost of expanding them at every generated token. One that a GPU does not hold even in 4 bits
    is laid out over the next ones.
    """
    options = load_options(**training)
    dtype = options["dtype"]
    device_map: Any = {"": "cuda" if torch.cuda.is_available() else "cpu"}
    if torch.cuda.device_count() > 1:
        device_map = "sequential"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, device_map=device_map, **options)
    if "quantization_config" in options and _room_for(model, dtype):
        model = model.dequantize().to(dtype)
    tuned = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    lora: Any = tuned.peft_config["default"]
    if lora.use_dora:
        for name, parameter in tuned.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.data = parameter.data.float()
        set_peft_model_state_dict(tuned, load_peft_weights(str(adapter)))  # anew: they had been rounded to `dtype`
        if _room_for(model, dtype, copies=2):
            DoraCaching()(enabled=True)  # or each layer's B A and its norm are computed again at every token
    model.generation_config = GenerationConfig()  # a base's own may ask for beams, or punish words of the prompt
    return tuned.eval()


def _room_for(model: PreTrainedModel, dtype: torch.dtype, copies: int = 1) -> bool:
    """Whether expanded weights fit, by the size of the GPU and not by what is free: every run on it answers alike."""
    devices = {parameter.device for parameter in model.parameters()}
    if devices == {torch.device("cpu")}:
        return True
    total = min(torch.cuda.get_device_properties(device).total_memory for device in devices)
    return len(devices) == 1 and copies * model.num_parameters() * dtype.itemsize < _EXPANDED_SHARE * total


def answer(
    model: PeftModel,
    prompts: list[list[int]],
    stop: list[int],
    max_new_tokens: int,
    batch_tokens: int,
    report: Callable[[str], None],
) -> list[list[int]]:
    """Greedy continuations of token ids, in the order given, end-of-sequence left out.

    Args:
        batch_tokens: prompt tokens at once, padding counted; rows of similar length together, longest first. Halved
            whenever memory runs out.
    Raises:
        UserError: the memory does not suffice for one row.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    began = last = time.monotonic()
    waiting = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    while waiting:
        width = len(prompts[waiting[0]])
        batch = waiting[: max(1, batch_tokens // max(1, width))]
        try:
            found = _generate(model, [prompts[index] for index in batch], stop, max_new_tokens)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise UserError(
                    f"evaluation: memory does not suffice to answer a prompt of {width:,} tokens with up to "
                    f"{max_new_tokens:,} new ones; lower evaluation.max_new_tokens or tokenization.max_length."
                ) from None
            batch_tokens = len(batch) // 2 * width
            found = None
        if found is None:  # outside the handler, whose traceback holds on to memory
            torch.cuda.empty_cache()
            report(f"out of memory: {batch_tokens:,} prompt tokens at once from here on")
            continue
        for index, ids in zip(batch, found, strict=True):
            answers[index] = until(ids, stop)
        waiting = waiting[len(batch) :]
        done, now = len(prompts) - len(waiting), time.monotonic()
        if now - last > REPORT_SECONDS or not waiting:
            left = (now - began) / done * len(waiting)
            report(f"{done:,}/{len(prompts):,} answers · {done / (now - began):.1f} a second · {left:.0f} s left")
            last = now
    return answers


def _generate(model: PeftModel, prompts: list[list[int]], stop: list[int], max_new_tokens: int) -> list[list[int]]:
    """Continuations of one batch, the longest prompt first, with what follows their ends."""
    width = len(prompts[0])
    ids = torch.full((len(prompts), width), stop[0])
    mask = torch.zeros_like(ids)
    for line, prompt in enumerate(prompts):  # padded on the left: generation goes on at the right
        ids[line, width - len(prompt) :] = torch.tensor(prompt)
        mask[line, width - len(prompt) :] = 1
    with torch.inference_mode():
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=stop,
            pad_token_id=stop[0],
        )
    return out[:, width:].tolist()


def until(ids: list[int], stop: list[int]) -> list[int]:
    """Ids before the first that ends a sequence."""
    return next((ids[:i] for i, id in enumerate(ids) if id in stop), ids)


def stop_ids(base: Path, eos: int) -> list[int]:
    """Every id that ends an answer: the tokenizer's own first, then those of the model's generation settings."""
    file = base / "generation_config.json"
    named = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
    return list(dict.fromkeys([eos, *(named if isinstance(named, list) else [named] if named is not None else [])]))


def tokenizer_of(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base, trust_remote_code=False)
