"""GPU memory of training: what each speed needs, how many tokens fit in a micro-batch, and what if memory runs out.

The need of each speed (activation_checkpointing.py) is estimated from the layers' shapes. The number of tokens in a
micro-batch is then measured with two micro-batches of real rows. After running out of memory the same rows are computed
with fewer tokens at once: without sharding at once, with sharding in the next attempt, which reads the number from a
file.
"""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.config import TrainingConfig
from tasks.errors import UserError
from tasks.model.activation_checkpointing import decoder_layers
from tasks.training.packing import Row, collate, flatten, pack

_USED_SHARE = 0.85  # share of the memory that is used; the rest is reserved for fragmentation
_WORKING_BYTES = 3 << 29  # a chunk of logits, one dequantized weight, temporary gradients
_FEWEST_TOKENS = 2048  # with fewer at once kernel launches dominate, and lean is faster
_PROBES = (1024, 3072)  # tokens of the micro-batches that are measured
_CPU_TOKENS = 2048  # more at once is no faster there
_EXPANSION = 0.5  # share of dequantization in a micro-batch's fixed time (27 of 55 ms at 8B on an H100)
_DENSE_SHARE = 0.25  # of a host's free memory that dequantized weights may take
_FILE = "tokens_at_once"  # among the checkpoints


def choose_speed(layers: list[nn.Module], step_tokens: int, longest: int, available: int) -> str:
    """The fastest speed that fits.

    Args:
        step_tokens: tokens of an optimizer step; more at once are never needed.
        longest: tokens of the longest row, which is never divided.
        available: bytes for activations, as `available_bytes` gives them.
    """
    available -= _WORKING_BYTES
    if step_tokens * kept_bytes(layers, "fast") <= available:
        return "fast"
    if max(longest, _FEWEST_TOKENS) * kept_bytes(layers, "balanced") <= available:
        return "balanced"
    return "lean"


def kept_bytes(layers: list[nn.Module], speed: str) -> int:
    """Bytes per token that `speed` keeps for the backward pass, in 16 bits."""
    values = 0
    for layer in layers:
        products = [m for name, m in layer.named_modules() if isinstance(m, nn.Linear) and "lora_" not in name]
        inputs = {m.in_features for m in products}  # layers that read the same input keep it once
        width, outputs = min(inputs), sum(m.out_features for m in products)
        values += {"fast": 2 * width + sum(inputs) + outputs, "balanced": width + outputs, "lean": width}[speed]
    return 2 * values


def available_bytes(device: torch.device, model: nn.Module) -> int:
    """Bytes of a GPU for activations: what weights, gradients and Adam's moments leave."""
    free, total = torch.cuda.mem_get_info(device)
    allowed = torch.cuda.memory.get_per_process_memory_fraction(device) * total
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    used = torch.cuda.memory_allocated(device)
    return int(_USED_SHARE * min(free + torch.cuda.memory_reserved(device), allowed)) - used - 12 * trained


def computed_tokens(layers: list[nn.Module], speed: str, longest: int, available: int) -> int:
    """Tokens of a micro-batch that should fit, estimated from shapes; arguments as in `choose_speed`."""
    one_layer = kept_bytes(layers[:1], "fast")  # kept in full while it computes, and as much again in gradients
    return max(longest, (available - _WORKING_BYTES) // (kept_bytes(layers, speed) + 2 * one_layer))


def host_holds(expanded: int) -> bool:
    """Whether the host has memory for this many bytes of dequantized weights beside everything else."""
    return expanded < _DENSE_SHARE * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def worth_expanding(
    expanded: int, layers: list[nn.Module], speed: str, step_tokens: int, at_once: int, longest: int, available: int
) -> bool:
    """Whether a GPU is faster with weights that are dequantized once, although fewer tokens fit beside them.

    Args:
        expanded: bytes of the dequantized weights.
        at_once: tokens of a micro-batch if configured, else 0.
    """

    def micro_batches(available: int) -> float:
        fitting = computed_tokens(layers, "balanced" if speed == "auto" else speed, 0, available)
        tokens = min(at_once or fitting, step_tokens)
        return math.ceil(step_tokens / tokens) if fitting >= max(longest, tokens) else math.inf

    return speed != "lean" and micro_batches(available - expanded) < (1 + _EXPANSION) * micro_batches(available)


def base_fits(folder: Path, config: TrainingConfig, longest: int, total: int) -> bool:
    """Whether a GPU of `total` bytes holds the whole base and can train at least the longest row (in tokens)."""
    with torch.device("meta"):
        config_of_base = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config_of_base, trust_remote_code=False)
    head, layers = model.get_output_embeddings(), decoder_layers(model)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    products = sum(m.weight.numel() for m in linear)
    others = sum(p.numel() for p in model.parameters()) - products
    width = getattr(torch, config.compute_dtype).itemsize
    quantized = 0.5 + (1 if config.double_quant else 4) / 64  # values and constants
    each = quantized if config.quantization == "4bit" else width
    trained = config.lora_r * sum(m.in_features + m.out_features for m in linear)
    last = {name.rsplit(".", 1)[-1]: module for name, module in model.named_modules()}
    trained += sum(p.numel() for name in config.modules_to_save if name in last for p in last[name].parameters())
    activations = longest * (kept_bytes(layers, "lean") + 2 * kept_bytes(layers[:1], "fast"))
    needed = others * width + products * each + 16 * trained + activations + _WORKING_BYTES
    return needed <= _USED_SHARE * total


def fitting_tokens(model: nn.Module, rows: Dataset, longest: int, device: torch.device) -> int:
    """The number of tokens in a micro-batch that fills the device, measured. Weights and random state do not change."""
    if device.type == "cpu":
        return _CPU_TOKENS
    some = [collate([row])["rows"].rows[0] for row in rows.select(range(min(64, len(rows))))]
    available, before = available_bytes(device, model), torch.cuda.memory_allocated(device)
    peaks: dict[int, int] = {}
    model.train()  # as in a step, otherwise the layers are compiled a second time
    with torch.random.fork_rng([device]):
        for tokens in _PROBES:
            group = pack(some, tokens)[0]
            torch.cuda.reset_peak_memory_stats(device)
            try:
                model(**vars(flatten(group, device))).backward()
                peaks[sum(len(row.input_ids) for row in group)] = torch.cuda.max_memory_allocated(device) - before
            except torch.OutOfMemoryError:
                return longest
            finally:
                model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return max(longest, tokens_in(peaks, available))


def tokens_in(peaks: dict[int, int], available: int) -> int:
    """The number of tokens that fills `available` bytes, from the peaks of one or two micro-batches (tokens → bytes).

    >>> tokens_in({1000: 3_000_000_000, 3000: 9_000_000_000}, 30_000_000_000)
    10000
    """
    (few, low), (many, high) = min(peaks.items()), max(peaks.items())
    if few == many:  # both were one long row: assume that all memory is needed per token
        return max(few, few * available // low)
    slope = max(1.0, (high - low) / max(1, many - few))
    return max(few, int(few + (available - low) / slope))


def lengths(rows: Dataset) -> np.ndarray:
    """Tokens of every row."""
    return pc.list_value_length(rows.data["input_ids"]).to_numpy()


class ShardedOutOfMemory(RuntimeError):
    """A process of a sharded run is out of memory; the next attempt has fewer tokens at once."""


def halved_budget(shares: list[list[Row]], budget: int) -> int:
    """Half the tokens of the largest micro-batch. Raises UserError if that is a single row, which is never divided."""
    groups = [group for rows in shares for group in pack(rows, budget)]
    largest = max(sum(len(row.input_ids) for row in group) for group in groups)
    longest = max(len(row.input_ids) for group in groups for row in group)
    if largest == longest and longest > budget // 2:
        raise UserError(
            f"a single row of {longest} tokens does not fit into the device's memory: set "
            "training.speed to lean, or lower tokenization.max_length"
        )
    return min(budget, largest) // 2


def end_attempt(folder: Path, budget: int, where: str) -> None:
    """Save the budget for the next attempt, and raise ShardedOutOfMemory.

    This attempt cannot repeat the step, because the other processes wait for this one in a collective of FSDP.
    """
    (folder / _FILE).write_text(str(budget))
    raise ShardedOutOfMemory(
        f"{where}: out of memory; the next attempt continues from the last checkpoint with at most {budget:,} tokens "
        "at once"
    )


def saved_budget(folder: Path, log: Callable[[str], None]) -> int:
    """The budget that an earlier attempt saved, or 0. A damaged file is logged and removed."""
    file = folder / _FILE
    if not file.exists():
        return 0
    if not re.fullmatch(rb"[1-9][0-9]{0,6}", text := file.read_bytes()):
        log(f"{file} is ignored: it takes a whole number of tokens, from 1 to 9,999,999")
        file.unlink()
        return 0
    return int(text)
