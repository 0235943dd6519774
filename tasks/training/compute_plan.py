"""The compute plan of a run: activation checkpointing, compilation, dequantized weights, tokens per micro-batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch._dynamo
import torch._inductor.config
from bitsandbytes.nn import Linear4bit
from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from tasks.config import TrainingConfig
from tasks.errors import UserError
from tasks.model.activation_checkpointing import checkpoint_activations, decoder_layers
from tasks.model.collectives import Collectives
from tasks.model.lora import groups
from tasks.model.sharding import in_flight_bytes, is_sharded
from tasks.training import memory

Result = TypeVar("Result")

_COMPILE_FROM = 3e16  # operations from which a run gains more than compilation costs: two minutes of a fast GPU


class ComputePlan:
    """How this run computes; the same in all processes.

    What `config` leaves open is decided from the model's size, the rows' lengths and the device's memory: what is kept
    for the backward pass (`speed`, see activation_checkpointing.py), whether the decoder layers are compiled, and
    whether dequantized weights are kept (`dense`).

    Args:
        arguments: the trainer's TrainingArguments.
    """

    def __init__(
        self,
        model: PeftModel,
        rows: Dataset,
        config: TrainingConfig,
        arguments: Any,
        collectives: Collectives,
        log: Callable[[str], None],
    ) -> None:
        base, lengths, device = model.get_base_model(), memory.lengths(rows), arguments.device
        longest, available, speed = int(lengths.max()), 0, str(config.speed)
        if device.type == "cuda":
            available = collectives.min(memory.available_bytes(device, model)) - in_flight_bytes(base)
        step_tokens = int(lengths.mean() * arguments.train_batch_size) // collectives.count  # of one process
        at_once, layers = config.micro_batch_tokens or step_tokens, decoder_layers(base)
        quantized = [] if is_sharded(model) else [group for group in groups(model) if group.kind]
        expanded = sum(sum(g.widths) * g.a_compute.shape[1] * g.a_compute.itemsize for g in quantized)  # bytes
        if device.type == "cpu":
            dense = memory.host_holds(expanded)
        else:
            limits = config.micro_batch_tokens, longest, available
            dense = memory.worth_expanding(expanded, layers, speed, step_tokens, *limits)
        dense = bool(expanded and collectives.min(int(dense)))
        if speed == "auto":
            left = available - expanded * dense
            speed = "fast" if device.type == "cpu" else memory.choose_speed(layers, at_once, longest, left)
        worth = step_tokens * arguments.max_steps * operations_per_token(model) > _COMPILE_FROM
        compiled = device.type == "cuda" and (config.compile == "always" or (config.compile == "auto" and worth))
        if is_sharded(model):
            compiled = False
            if config.compile == "always":
                log("the layers are not compiled: their weights are divided among the processes")
        self.speed, self.dense, self.compiled, self.dropout = speed, dense, compiled, config.lora_dropout > 0
        self.device, self.available, self.longest = device, available, longest

    def apply(self, model: PeftModel) -> None:
        """Make the model's layers compute as planned."""
        base = cast(PreTrainedModel, model.get_base_model())
        if self.dense:
            for group in groups(base):
                group.keep_dense()
        checkpoint_activations(base, self.speed, self.dropout)
        if self.compiled:
            _compile_layers(base, self.dropout)

    def fitting_tokens(
        self, model: PeftModel, rows: Dataset, collectives: Collectives, log: Callable[[str], None]
    ) -> int:
        """The number of tokens in a micro-batch that fills the device."""
        if is_sharded(model) and self.device.type == "cuda":
            # estimated: if a process ran out of memory while measuring, the others would wait for it
            layers = decoder_layers(model.get_base_model())
            return memory.computed_tokens(layers, self.speed, self.longest, self.available)

        def measured() -> int:
            return memory.fitting_tokens(model, rows, self.longest, self.device)

        return collectives.min(uncompiled_on_failure(measured, model.zero_grad, log))


def should_shard(
    folder: Path, config: TrainingConfig, rows: Dataset, device: torch.device, collectives: Collectives
) -> bool:
    """Whether processes divide the base: if configured (UserError for one), or if it does not fit on one GPU."""
    if config.sharding == "always" and collectives.count == 1:
        raise UserError("training.sharding always needs several processes, and this run has one")
    if config.sharding != "auto":
        return config.sharding == "always"
    if collectives.count == 1 or device.type == "cpu" or config.dora:
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    return bool(collectives.max(not memory.base_fits(folder, config, int(memory.lengths(rows).max()), total)))


def operations_per_token(model: nn.Module) -> int:
    """Floating-point operations per trained token, by the usual convention for QLoRA.

    Counts the matrix products of the base's layers and head: forward, gradient of the activations, and gradient of the
    head where it is trained. Adapters, attention and recomputation do not count.
    """
    products = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Linear4bit) and "lora_" not in name and "original_module" not in name
    ]
    return sum((6 if m.weight.requires_grad else 4) * m.in_features * m.out_features for m in products)


def uncompiled_on_failure(work: Callable[[], Result], reset: Callable[[], None], log: Callable[[str], None]) -> Result:
    """The result of `work`. If torch.compile fails in it, `work` runs again without compilation.

    Args:
        work: forward and backward passes.
        reset: undoes what the failed attempt changed: gradients and random state.
        log: receives why the run is slower from now on.
    """
    try:
        return work()
    except torch._dynamo.exc.TorchDynamoException as error:
        why = " ".join(str(error).split())[:300]
        log(f"torch.compile failed, so the layers run without it, which is slower: {why}")
    torch.compiler.set_stance("force_eager")
    reset()
    return work()


def _compile_layers(base: PreTrainedModel, dropout: bool) -> None:
    """Compile one decoder layer, which all others reuse: a minute of start-up instead of many."""
    # Inductor's own random numbers: torch 2.11 marks the size of a dropout mask as something to compute again in the
    # backward pass, and then cannot divide the graph ("Node add_… was invalid, but is output").
    torch._inductor.config.fallback_random = dropout
    # layers of one group pass their outputs through an attribute, which recomputation sets again
    torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
    # otherwise a norm's epsilon is a variable on the CPU, and the compiler probes the CPU's instruction sets: 40 s
    torch._dynamo.config.specialize_float = True
    base.enable_input_require_grads()  # without it the first layer would be compiled separately
    for layer in decoder_layers(base):
        layer.compile(dynamic=True)
