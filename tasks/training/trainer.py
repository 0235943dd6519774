"""TRL's SFTTrainer with a step of its own: packed micro-batches, one exact loss, out-of-memory survived.

A step is `batch_size` rows over all processes whatever fits on the device: the rows are divided among the processes and
packed into micro-batches of at most `micro_batch_tokens`, whose losses are summed and divided by the learnt tokens of
the whole step. So both numbers change speed and memory and never the result beyond rounding, but for the numbers that
dropout and NEFTune draw.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_callback import PrinterCallback
from trl import SFTTrainer

from tasks.config import TrainingConfig
from tasks.model.device import Instant, random_state, set_random_state
from tasks.model.fused_loss import train_on_packs
from tasks.model.lora import refresh
from tasks.model.sharding import is_sharded
from tasks.training import checkpoints, compute_plan
from tasks.training.arguments import arguments, no_tokenizer
from tasks.training.compute_plan import uncompiled_on_failure
from tasks.training.distributed.collectives import Peers, meeting
from tasks.training.log import StepLog
from tasks.training.out_of_memory import halved, leave, left
from tasks.training.packing import Row, StepRows, collate, divide, flatten, turns
from tasks.training.step_metrics import Unsettled
from tasks.training.validation import Enough, Validation

_LOG_FILE = "step_log.parquet"
# how a step went for a process: well, well but a checkpoint is due, ...; the worst is what all act on
_WELL, _DUE, _SHORT_OF_MEMORY, _STOPPED = range(4)


class Interrupted(BaseException):
    """SIGTERM arrived while a step was being computed. Not an Exception: nothing on the way may swallow it."""


class PackedTrainer(SFTTrainer):
    """Trains LoRA layers on packed rows.

    Args:
        model: a base with an adapter, from `base.load`.
        rows: data set with `input_ids` and `labels` (unshifted, -100: not learnt), lists of ints.
        config: the training configuration.
        checkpoint_folder: where checkpoints live.
        say: receives progress lines.
        held_back: rows to validate on; the weights with the lowest loss on them are kept.
        peers: the processes of the run.
    """

    def __init__(
        self,
        model: PeftModel,
        rows: Dataset,
        config: TrainingConfig,
        checkpoint_folder: Path,
        say: Callable[[str], None] = print,
        held_back: Dataset | None = None,
        peers: Peers | None = None,
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
        # not wrapped in DDP: `peers` adds up the gradients
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.peers, self.sharded = peers or Peers(), is_sharded(model)
        if self.peers.count > 1:  # dropout and noise of their own
            torch.manual_seed(config.seed + self.peers.rank)
        self.processing_class = None  # the rows are tokens already; nothing to save beside the weights
        self.adapted, self.folder = model, checkpoint_folder
        self.micro_batch_tokens = config.micro_batch_tokens
        self.halvings = self.micro_batches = 0
        self.checkpoint_steps = 0  # by minutes alone
        self.step_log = StepLog(self.args.max_steps, say)
        self.validation: Validation | None = None
        if held_back is not None:
            epoch = math.ceil(len(rows) / config.batch_size)
            self.validation = Validation(held_back, config, epoch, self.args.max_steps, say)
        self.stop_requested = False
        self._say = say
        self._run_folder: str | None = None
        self._unsettled: Unsettled | None = None
        self._computing = False
        self._shares: list[list[Row]] = []  # rows of all processes that are computed now
        self.began = Instant(self.args.device)
        self._random_state = random_state()
        train_on_packs(cast(PreTrainedModel, model.get_base_model()), config.neftune_alpha)
        self.way = compute_plan.choose(model, rows, config, self.args, self.peers, say)
        self.way.prepare(model)
        self.remove_callback(PrinterCallback)
        self.step_end = checkpoints.StepEnd(self)
        self.add_callback(self.step_end)

    # --- one step -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Whole steps for every process: it takes its share itself (`divide`), and knows the others'."""
        loader = super().get_train_dataloader()
        if self.peers.count > 1:  # or else the last step of an epoch would be filled up with rows seen already
            shard: Any = loader.batch_sampler
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one step; the loss is the mean over the learnt tokens of all processes' rows."""
        rows: StepRows = inputs["rows"]
        model.train()
        self._random_state = random_state()
        refresh(self.adapted)
        self._validate()
        shares = divide(rows.rows, self.peers.count)
        step = self.state.global_step + 1
        loss = self._fitting(lambda: self._accumulate(model, shares, rows.learnt), f"step {step}")
        loss = self.peers.add_up([p for p in model.parameters() if p.requires_grad], loss)
        self._settle()
        self._unsettled = Unsettled(step, rows.tokens, rows.learnt, self._get_learning_rate(), loss)
        return loss

    def _fitting(self, work: Callable[[], torch.Tensor], where: str) -> torch.Tensor:
        """This process's result of something that all do, again with fewer tokens at once while one is out of memory.

        Raises:
            Interrupted: one of them was asked to stop.
            UserError: a single row does not fit.
        """
        while True:
            result, tokens = self._attempt(work, where)
            if tokens == self.micro_batch_tokens:
                return result
            self._halve(tokens, where)

    def _attempt(self, work: Callable[[], torch.Tensor], where: str) -> tuple[torch.Tensor, int]:
        """One try: this process's result, and the tokens at once that all have memory for."""
        result, how, tokens = torch.zeros((), device=self.args.device), _WELL, self.micro_batch_tokens
        try:
            try:
                self._computing = not self.sharded
                if self.stop_requested and self._computing:
                    raise Interrupted
                with meeting():  # FSDP gathers weights meanwhile
                    result = uncompiled_on_failure(work, self._undo_attempt, self._say)
                self._computing = False
                how = _DUE if self.step_end.late() else _WELL
            except torch.OutOfMemoryError:
                self._computing = False
                how, tokens = _SHORT_OF_MEMORY, halved(self._shares, tokens)
                if self.sharded:
                    leave(self.folder, tokens, f"process {self.peers.rank}, {where}")
        except Interrupted:
            how = _STOPPED
        how = self.peers.most(how)
        if how == _STOPPED:
            raise Interrupted
        self.step_end.due = how == _DUE
        return result, self.peers.least(tokens) if how == _SHORT_OF_MEMORY else tokens

    def _accumulate(self, model: torch.nn.Module, shares: list[list[Row]], learnt: int) -> torch.Tensor:
        """Forward and backward over this process's micro-batches; `learnt`: tokens of the step in all processes."""
        total = torch.zeros((), device=self.args.device)
        for number, (group, factor) in enumerate(self._turns(shares), 1):
            loss = model(**vars(flatten(group, self.args.device))) * (factor / max(learnt, 1))
            self.accelerator.backward(loss)
            total += loss.detach()
            self.micro_batches += 1
            if number == 1:
                self._settle()  # the step before, now that the device has work queued
        return total

    def _turns(self, shares: list[list[Row]]) -> Iterator[tuple[list[Row], float]]:
        """This process's micro-batches, each with the factor of its loss.

        All processes gather sharded weights at the same time. So there they take turns in step, and agree on stopping
        before each one, where nobody waits for another yet.
        """
        self._shares = shares
        for turn in turns(shares, self.peers.rank, self.micro_batch_tokens, in_step=self.sharded):
            if self.sharded and self.peers.most(self.stop_requested):
                raise Interrupted
            yield turn

    def _halve(self, tokens: int, where: str) -> None:
        """Make room after a process ran out of memory, for the same step again with so many tokens at once."""
        self._undo_attempt()
        torch.cuda.empty_cache()
        self.micro_batch_tokens = tokens
        self.halvings += 1
        self._say(
            f"out of memory in {where}: trying it again with at most {tokens:,} tokens at once (same rows per step)"
        )

    def _undo_attempt(self) -> None:
        """Undo the gradients and the random numbers of a step that is computed again."""
        self.adapted.zero_grad(set_to_none=True)
        set_random_state(self._random_state)

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        assert self._unsettled is not None
        self._unsettled.measured(norm, self.args.device)
        return norm

    def _settle(self) -> None:
        """Read the last step's numbers, log them, and fail if it taught nothing.

        One step late, when the next step's work is queued already, so that the device need not wait for the reading;
        always before a checkpoint is written. A step lasts from the end of the gradients before it to the end of its
        own. A request to stop waits meanwhile, or else the numbers would be lost, or logged twice.
        """
        computing, self._computing = self._computing, False
        last, self._unsettled = self._unsettled, None
        if last is not None and last.end is not None:
            loss, norm = last.read(scaled=self.args.fp16)
            seconds, self.began = last.end.since(self.began), last.end
            self.step_log.add(last.step, last.tokens, last.learnt, loss, last.learning_rate, norm, seconds)
        self._computing = computing
        if computing and self.stop_requested:
            raise Interrupted

    def _validate(self) -> None:
        """Validate the weights as they are, when that is due; its time is no step's.

        Raises:
            Enough: the loss has not fallen for too long.
        """
        validation, step = self.validation, self.state.global_step
        if validation and validation.due(step):
            self._settle()
            work = functools.partial(validation.sums, self.adapted, self._turns, self.peers)
            sums = self._fitting(work, f"the validation after step {step}")
            self.step_log.validated(validation.add(step, self.peers.total(sums), self.adapted))
            self.began = Instant(self.args.device)
        if validation and validation.spent:
            raise Enough

    # --- checkpoints ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train from the last valid checkpoint, or from the beginning.

        Raises:
            Interrupted: `request_stop` was called; a checkpoint of the last finished step was written.
            TrainingFailed: a step's loss or gradient was not a number, or its gradient zero.
        """
        if self.peers.rank:
            self.peers.most(0)  # waits for the first one, which removes damaged ones and says so
        resume, advice = checkpoints.last_valid(self.folder, self._say), left(self.folder, self._say)
        if not self.peers.rank:
            self.peers.most(0)
        # the last one that all see: a shared file system may show a node an older state
        step = self.peers.least(int(resume.name.rpartition("-")[2]) if resume else 0)
        resume = self.folder / f"checkpoint-{step}" if step else None
        if resume is not None:
            self.step_log.restore(resume / _LOG_FILE, step)
            if self.validation:
                self.validation.restore(resume, self.step_log.rows)
            self._say(f"resuming from the checkpoint of step {step}")
        # the same in all: or else those that see the file would not take part in measuring
        self.micro_batch_tokens = self.peers.most(advice) or self.micro_batch_tokens
        if not self.micro_batch_tokens:
            assert isinstance(self.train_dataset, Dataset)
            self.micro_batch_tokens = self.way.fitting_tokens(self.adapted, self.train_dataset, self.peers, self._say)
            weights = ", 4-bit weights kept expanded" if self.way.dense else ""
            self._say(f"{self.way.speed}, at most {self.micro_batch_tokens:,} tokens at once{weights}")
        self.peers.start_equal([p for p in self.adapted.parameters() if p.requires_grad])
        try:
            if resume and step == self.args.max_steps:  # it was interrupted in its last validation
                self._load_from_checkpoint(str(resume))
                self.state.global_step = step
            else:
                self.train(resume_from_checkpoint=str(resume) if resume else None)
            self._settle()
            self._random_state = random_state()
            refresh(self.adapted)
            self._validate()
        except Enough:
            self._say(f"stopping after step {self.state.global_step}: no lower validation loss lately")
        except Interrupted:
            self._computing = False
            self.adapted.zero_grad(set_to_none=True)
            set_random_state(self._random_state)
            self._settle()
            if self.state.global_step > step:
                self._save_checkpoint(self.adapted, None)
            raise
        if self.validation:
            self.validation.use_best(self.adapted)

    def request_stop(self, *_: Any) -> None:
        """Signal handler: give up the step being computed, or stop before the next one."""
        self.stop_requested = True
        if self._computing:
            self._computing = False
            raise Interrupted

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self._settle()
        final = Path(self.folder, f"checkpoint-{self.state.global_step}")
        self._run_folder = str(Path(self.folder, f".writing-{'together' if self.peers.count > 1 else os.getpid()}"))
        try:
            super()._save_checkpoint(model, trial)
            written = Path(self._run_folder, final.name)
        finally:
            self._run_folder = None
        self.peers.most(0)  # waits for all: each process writes its own random state
        if self.args.should_save:
            self.step_log.save(written / _LOG_FILE)
            if self.validation:
                self.validation.save(written)
            checkpoints.seal(written, final)
            written.parent.rmdir()

    def _get_output_dir(self, trial: Any) -> str:
        return self._run_folder or super()._get_output_dir(trial)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a model card is the publishing stage's."""

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted per step; see `log.py` for the totals."""
        return 0
