"""How a run is computed on the device at hand: what is kept, what is compiled, how many tokens at once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch._dynamo
import torch._inductor.config
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel

from tasks.config import TrainingConfig
from tasks.model.activation_checkpointing import decoder_layers, recompute
from tasks.model.flops import per_token
from tasks.model.lora import groups
from tasks.model.sharding import in_flight_bytes, is_sharded
from tasks.training import memory
from tasks.training.distributed.collectives import Peers

Result = TypeVar("Result")

_COMPILE_FROM = 3e16  # operations of a run whose gain outweighs compilation: about two minutes of a fast GPU


@dataclass(frozen=True)
class Way:
    """What was left to choice, chosen; the same in all processes.

    Args:
        speed: what is kept for the backward pass (recompute.py).
        compiled: whether the decoder layers are.
        device: of this process.
        room: bytes of a GPU for activations and what goes with them; 0 on a CPU.
        longest: tokens of the longest row.
        dropout: whether computing a layer again must repeat its random numbers.
        dense: whether the 4-bit weights' values are kept expanded beside them.
    """

    speed: str
    compiled: bool
    device: torch.device
    room: int
    longest: int
    dropout: bool
    dense: bool

    def prepare(self, model: PeftModel) -> None:
        """Make the model's layers compute that way."""
        base = cast(PreTrainedModel, model.get_base_model())
        if self.dense:
            for group in groups(base):
                group.keep_dense()
        recompute(base, self.speed, self.dropout)
        if self.compiled:
            _compile_layers(base, self.dropout)

    def fitting_tokens(self, model: PeftModel, rows: Dataset, peers: Peers, say: Callable[[str], None]) -> int:
        """Tokens of a micro-batch that fill the device."""
        if is_sharded(model) and self.device.type == "cuda":
            # not by trying: a process that fails would leave the others waiting
            layers = decoder_layers(model.get_base_model())
            return memory.computed_tokens(layers, self.speed, self.longest, self.room)

        def measured() -> int:
            return memory.fitting_tokens(model, rows, self.longest, self.device)

        return peers.least(uncompiled_on_failure(measured, model.zero_grad, say))


def choose(
    model: PeftModel, rows: Dataset, config: TrainingConfig, arguments: Any, peers: Peers, say: Callable[[str], None]
) -> Way:
    """What `config` leaves open, by the model's size, the rows' lengths and the memory there is.

    Args:
        arguments: the trainer's own.
        say: told of a wish that cannot be met.
    """
    base, lengths, device = model.get_base_model(), memory.lengths(rows), arguments.device
    longest, room, speed = int(lengths.max()), 0, str(config.speed)
    if device.type == "cuda":
        room = peers.least(memory.room(device, model)) - in_flight_bytes(base)
    step_tokens = int(lengths.mean() * arguments.train_batch_size) // peers.count  # of one process
    at_once, layers = config.micro_batch_tokens or step_tokens, decoder_layers(base)
    expanded = 0 if is_sharded(model) else memory.expanded_bytes(model)
    if device.type == "cpu":
        dense = memory.host_holds(expanded)
    else:
        dense = memory.worth_expanding(expanded, layers, speed, step_tokens, config.micro_batch_tokens, longest, room)
    dense = bool(expanded and peers.least(int(dense)))
    if speed == "auto":
        left = room - expanded * dense
        speed = "fast" if device.type == "cpu" else memory.choose_speed(layers, at_once, longest, left)
    worth = step_tokens * arguments.max_steps * per_token(model) > _COMPILE_FROM
    compiled = config.compile == "always" or (config.compile == "auto" and worth)
    if compiled and is_sharded(model):
        compiled = False
        if config.compile == "always":
            say("the layers are not compiled: their weights are divided among the processes")
    return Way(speed, compiled and device.type == "cuda", device, room, longest, config.lora_dropout > 0, dense)


def uncompiled_on_failure(work: Callable[[], Result], reset: Callable[[], None], say: Callable[[str], None]) -> Result:
    """The result of `work`. Where torch.compile fails in it, it runs once more with layers that are not compiled.

    Args:
        work: forward and backward passes.
        reset: removes what the failed attempt left: gradients, and random numbers drawn.
        say: told why the run is slower from now on.
    """
    try:
        return work()
    except torch._dynamo.exc.TorchDynamoException as error:
        say(f"torch.compile failed, so the layers run without it, slower: {' '.join(str(error).split())[:300]}")
    torch.compiler.set_stance("force_eager")
    reset()
    return work()


def _compile_layers(base: PreTrainedModel, dropout: bool) -> None:
    """One compiled decoder layer, reused by all of them: a minute of start-up instead of many."""
    # Inductor's own random numbers: torch 2.11 marks the size of a dropout mask as something to compute again in the
    # backward pass, and then cannot divide the graph ("Node add_… was invalid, but is output").
    torch._inductor.config.fallback_random = dropout
    # sibling layers hand their outputs over through an attribute, which recomputation does anew
    torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
    # or a norm's epsilon is a variable on the CPU, for which the compiler first tries out what that can do: 40 s
    torch._dynamo.config.specialize_float = True
    base.enable_input_require_grads()  # the first layer's input like every other's, or it is compiled once more
    for layer in decoder_layers(base):
        layer.compile(dynamic=True)
