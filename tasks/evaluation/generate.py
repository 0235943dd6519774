"""Greedy answers of the base and of base plus adapter, from one model in memory."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

REPORT_SECONDS = 5.0


def load(base: Path, adapter: Path, training: dict[str, Any]) -> PeftModel:
    """The base with the very weights the adapter was trained on, and the adapter over it.

    A base trained in 4 bits is quantized the same way and then expanded once: the same numbers as in training, without
    the cost of expanding them at every generated token.
    """
    dtype = getattr(torch, training["compute_dtype"])
    options: dict[str, Any] = {}
    if training["quantization"] == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=training["quant_type"],
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=training["double_quant"],
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, device_map={"": device}, **options)
    if options:
        model = model.dequantize().to(dtype)
    tuned = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    return tuned.eval()


def batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, at most `limit` prompt tokens with padding counted."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > limit:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def answer(
    model: PeftModel,
    prompts: list[list[int]],
    stop: list[int],
    max_new_tokens: int,
    batch_tokens: int,
    report: Callable[[str], None],
) -> list[list[int]]:
    """Greedy continuations of token ids, in the order given, end-of-sequence left out."""
    answers: list[list[int]] = [[] for _ in prompts]
    began = last = time.monotonic()
    done = 0
    for batch in batches([len(p) for p in prompts], batch_tokens):
        width = len(prompts[batch[0]])
        ids = torch.full((len(batch), width), stop[0])
        mask = torch.zeros_like(ids)
        for line, index in enumerate(batch):  # padded on the left: generation goes on at the right
            ids[line, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[line, width - len(prompts[index]) :] = 1
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=stop,
                pad_token_id=stop[0],
            )
        for line, index in enumerate(batch):
            answers[index] = until(out[line, width:].tolist(), stop)
        done += len(batch)
        now = time.monotonic()
        if now - last > REPORT_SECONDS or done == len(prompts):
            left = (now - began) / done * (len(prompts) - done)
            report(f"{done:,}/{len(prompts):,} answers · {done / (now - began):.1f} a second · {left:.0f} s left")
            last = now
    return answers


def until(ids: list[int], stop: list[int]) -> list[int]:
    """Ids before the first that ends a sequence."""
    return next((ids[:i] for i, id in enumerate(ids) if id in stop), ids)


def stop_ids(base: Path, eos: int) -> list[int]:
    """Every id that ends an answer: the tokenizer's own first, then those of the model's generation settings."""
    file = base / "generation_config.json"
    named = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
    return list(dict.fromkeys([eos, *(named if isinstance(named, list) else [named] if named is not None else [])]))


def tokenizer_of(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)
