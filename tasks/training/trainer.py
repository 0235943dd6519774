"""TRL's SFTTrainer with a step of its own: packed micro-batches, one exact loss, out-of-memory survived.

A step is `batch_size` rows over all processes whatever fits on the device: the rows are packed into micro-batches of at
most `micro_batch_tokens`, whose losses are summed and divided by the learnt tokens of the whole step. So that number
changes speed and memory and never the result beyond rounding.
"""

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch._dynamo
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from tasks.config import TrainingConfig
from tasks.errors import UserError
from tasks.training import checkpoints, memory
from tasks.training.arguments import arguments, no_tokenizer
from tasks.training.device import Instant, random_state, set_random_state
from tasks.training.flops import measured_rate, per_token
from tasks.training.head import train_on_packs
from tasks.training.log import StepLog
from tasks.training.lora import refresh
from tasks.training.packing import StepRows, collate, flatten, pack
from tasks.training.recompute import decoder_layers, recompute

_LOG_FILE = "step_log.parquet"
_COMPILE_FROM = 3e16  # operations of a run whose gain outweighs compilation: about two minutes of a fast GPU


class TrainingFailed(RuntimeError):
    """Training would go on without learning; the checkpoints before this step are good."""


class Interrupted(BaseException):
    """SIGTERM arrived while a step was being computed. Not an Exception: nothing on the way may swallow it."""


@dataclass
class _Unsettled:
    """A step whose numbers are still on the device."""

    step: int
    tokens: int
    learnt: int
    learning_rate: float
    loss: torch.Tensor
    numbers: torch.Tensor | None = None  # loss and gradient norm, on the CPU once `end` has happened
    end: "Instant | None" = None


class PackedTrainer(SFTTrainer):
    """Trains LoRA layers on packed rows.

    Args:
        model: a base with an adapter, from `base.load`.
        rows: data set with `input_ids` and `labels` (unshifted, -100: not learnt), lists of ints.
        config: the training configuration.
        checkpoint_folder: where checkpoints live.
        say: receives progress lines.
    """

    def __init__(
        self,
        model: PeftModel,
        rows: Dataset,
        config: TrainingConfig,
        checkpoint_folder: Path,
        say: Callable[[str], None] = print,
    ) -> None:
        master = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(
            model=model,
            args=arguments(config, len(rows), checkpoint_folder),
            train_dataset=rows,
            data_collator=collate,
            processing_class=no_tokenizer(),
        )
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:  # SFTTrainer rounds a 4-bit base's adapter to bfloat16; ours stays float32
                parameter.data = master[name]
        self.processing_class = None  # the rows are tokens already; nothing to save beside the weights
        self.adapted, self.folder = model, checkpoint_folder
        self.micro_batch_tokens = config.micro_batch_tokens
        self.halvings = 0
        self.checkpoint_steps = 0  # by minutes alone
        self.step_log = StepLog(self.args.max_steps, say)
        self.stop_requested = False
        self._say = say
        self._run_folder: str | None = None
        self._unsettled: _Unsettled | None = None
        self._computing = False
        self.began = Instant(self.args.device)
        self._random_state = random_state()
        train_on_packs(cast(PreTrainedModel, model.get_base_model()), config.neftune_alpha)
        self._plan(config, rows)
        self.remove_callback(PrinterCallback)
        self.add_callback(_StepEnd(self))

    # --- how ------------------------------------------------------------------------------------------------------

    def _plan(self, config: TrainingConfig, rows: Dataset) -> None:
        """Choose what is left to choice: what is kept for the backward pass, and whether to compile."""
        base, lengths = self.adapted.get_base_model(), memory.lengths(rows)
        layers, device = decoder_layers(base), self.args.device
        step_tokens = int(lengths.mean() * self.args.train_batch_size)
        self.speed: str = config.speed
        self.longest = int(lengths.max())
        if self.speed == "auto" and device.type == "cpu":
            self.speed = "fast"
        elif self.speed == "auto":
            at_once = self.micro_batch_tokens or step_tokens
            self.speed = memory.choose_speed(layers, at_once, self.longest, memory.room(device, self.adapted))
        recompute(base, self.speed, dropout=config.lora_dropout > 0)
        worth = step_tokens * self.args.max_steps * per_token(self.adapted) > _COMPILE_FROM
        if device.type == "cuda" and (config.compile == "always" or (config.compile == "auto" and worth)):
            _compile_layers(self.adapted)

    # --- one step -------------------------------------------------------------------------------------------------

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one step; the loss is the mean over the learnt tokens of all processes' rows."""
        rows: StepRows = inputs["rows"]
        model.train()
        learnt, tokens = rows.learnt, rows.tokens
        if self._world > 1:  # not otherwise: reading from the device would wait for all its work
            counts = torch.tensor([learnt, tokens, self.stop_requested], device=self.args.device)
            learnt, tokens, stop = self.accelerator.reduce(counts, "sum").tolist()
            self.stop_requested = stop > 0  # all of them before the same step
        self._random_state = random_state()
        self._computing = True
        if self.stop_requested:
            raise Interrupted
        refresh(self.adapted)
        while True:
            try:
                loss = self._accumulate(model, rows, learnt)
                break
            except torch.OutOfMemoryError:
                self._halve(model, rows)
        self._computing = False
        if self._world > 1:
            loss = self.accelerator.reduce(loss, "mean")
        self._unsettled = _Unsettled(self.state.global_step + 1, tokens, learnt, self._get_learning_rate(), loss)
        return loss

    def _accumulate(self, model: torch.nn.Module, rows: StepRows, learnt: int) -> torch.Tensor:
        """Forward and backward over the step's micro-batches; DDP exchanges gradients with the last one."""
        total = torch.zeros((), device=self.args.device)
        groups = pack(rows.rows, self.micro_batch_tokens)
        for number, group in enumerate(groups, 1):
            batch = flatten(group, self.args.device)
            with nullcontext() if number == len(groups) else self.accelerator.no_sync(model):
                # DDP averages over the processes, so the sum over them needs their number as a factor
                loss = model(**vars(batch)) * (self._world / max(learnt, 1))
                self.accelerator.backward(loss)
            total += loss.detach()
            if number == 1:
                self._settle()  # the step before, now that the device has work queued
        return total

    def _halve(self, model: torch.nn.Module, rows: StepRows) -> None:
        """Make room after running out of memory: the same step again with half the tokens at once."""
        if self._world > 1:
            raise RuntimeError("the GPU ran out of memory: lower training.micro_batch_tokens")
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        largest = max(sum(len(row.input_ids) for row in group) for group in pack(rows.rows, self.micro_batch_tokens))
        longest = max(len(row.input_ids) for row in rows.rows)
        if largest == longest and longest > self.micro_batch_tokens // 2:
            raise UserError(
                f"a single row of {longest} tokens does not fit into the device's memory: set "
                "training.speed to lean, or lower tokenization.max_length"
            )
        self.micro_batch_tokens = min(self.micro_batch_tokens, largest) // 2
        self.halvings += 1
        set_random_state(self._random_state)
        self._say(
            f"out of memory in step {self.state.global_step + 1}: trying it again with at most "
            f"{self.micro_batch_tokens:,} tokens at once (same rows per step, same result)"
        )

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        assert self._unsettled is not None
        numbers = torch.stack([self._unsettled.loss.float(), norm.detach().float()])
        if numbers.is_cuda:
            pinned = torch.empty(2, pin_memory=True)
            pinned.copy_(numbers, non_blocking=True)
            numbers = pinned
        self._unsettled.numbers, self._unsettled.end = numbers, Instant(self.args.device)
        return norm

    def _settle(self) -> None:
        """Read the last step's numbers, log them, and fail if it taught nothing.

        One step late, when the next step's work is queued already, so that the device need not wait for the reading;
        always before a checkpoint is written. A step lasts from the end of the gradients before it to the end of its
        own.
        """
        last, self._unsettled = self._unsettled, None
        if last is None or last.numbers is None or last.end is None:
            return
        last.end.wait()
        loss, norm = last.numbers.tolist()
        skipped = self.args.fp16 and not math.isfinite(norm)  # the gradient scaler leaves such a step out by design
        if not math.isfinite(loss) or not (math.isfinite(norm) or skipped):
            raise TrainingFailed(
                f"step {last.step}: loss {loss:.4g}, gradient norm {norm:.4g}. Training diverged; lower "
                "training.learning_rate. The last good checkpoint is kept."
            )
        if norm == 0:
            raise TrainingFailed(
                f"step {last.step}: the gradient is zero, so nothing is learnt (loss {loss:.4g}). "
                "The last good checkpoint is kept."
            )
        seconds, self.began = last.end.since(self.began), last.end
        self.step_log.add(last.step, last.tokens, last.learnt, loss, last.learning_rate, norm, seconds)

    @property
    def _world(self) -> int:
        return int(self.accelerator.num_processes)

    def utilisation(self) -> float | None:
        """Share of the GPU's matmul rate, measured here, that the frozen layers' products reach; None on a CPU."""
        if self.args.device.type != "cuda":
            return None
        speed = float(self.step_log.totals()["tokens_per_second"])
        return speed * per_token(self.adapted) / measured_rate(self.args.device)

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the last valid checkpoint, or from the beginning.

        Raises:
            Interrupted: `request_stop` was called; a checkpoint of the last finished step was written.
            TrainingFailed: a step's loss or gradient was not a number, or its gradient zero.
        """
        resume = checkpoints.last_valid(self.folder)
        if resume is not None:
            step = int(resume.name.rpartition("-")[2])
            self.step_log.restore(resume / _LOG_FILE, step)
            self._say(f"resuming from the checkpoint of step {step}")
        if not self.micro_batch_tokens:
            assert isinstance(self.train_dataset, Dataset)
            self.micro_batch_tokens = memory.fitting_tokens(
                self.adapted, self.train_dataset, self.longest, self.args.device
            )
            self._say(f"{self.speed}, at most {self.micro_batch_tokens:,} tokens at once")
        try:
            self.train(resume_from_checkpoint=str(resume) if resume else None)
            self._settle()
        except Interrupted:
            self._computing = False
            self.adapted.zero_grad(set_to_none=True)
            set_random_state(self._random_state)
            self._settle()
            if self.state.global_step:
                self._save_checkpoint(self.adapted, None)
            raise

    def request_stop(self, *_: Any) -> None:
        """Signal handler: give up the step being computed, or stop before the next one."""
        self.stop_requested = True
        if self._computing and self._world == 1:
            self._computing = False
            raise Interrupted

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._settle()
        final = Path(self.folder, f"checkpoint-{self.state.global_step}")
        self._run_folder = str(Path(self.folder, f".writing-{os.environ.get('TORCHELASTIC_RUN_ID', os.getpid())}"))
        try:
            super()._save_checkpoint(model, trial)
            written = Path(self._run_folder, final.name)
        finally:
            self._run_folder = None
        self.accelerator.wait_for_everyone()  # each process writes its own random state
        if self.args.should_save:
            self.step_log.save(written / _LOG_FILE)
            checkpoints.seal(written, final)
            written.parent.rmdir()

    def _get_output_dir(self, trial: Any) -> str:
        return self._run_folder or super()._get_output_dir(trial)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a model card is the publishing stage's."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted per step; see `log.py` for the totals."""
        return 0


class _StepEnd(TrainerCallback):
    """Checkpoints by the clock and by steps; the end of a step is also where a requested stop takes effect."""

    def __init__(self, trainer: PackedTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.began = Instant(args.device)
        self.saved = checkpoints.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        every = self.trainer.checkpoint_steps
        due = every and state.global_step % every == 0
        due = due or checkpoints.now() - self.saved >= 60 * checkpoints.MINUTES
        if due and state.global_step < state.max_steps:
            self.saved = checkpoints.now()
            control.should_save = True


def _compile_layers(model: PeftModel) -> None:
    """One compiled decoder layer, reused by all of them: a minute of start-up instead of many."""
    # sibling layers hand their outputs over through an attribute, which recomputation does anew
    torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
    for layer in decoder_layers(model.get_base_model()):
        layer.compile(dynamic=True)
