"""Settings and overrides of TRL's SFTTrainer and of transformers' Trainer, private names included.

tests/contracts/test_trl.py fails if one of these names is gone or means something else.
"""

import functools
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerFast, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from tasks.config import TrainingConfig
from tasks.model.collectives import Collectives
from tasks.model.device import Instant
from tasks.model.fused_loss import use_fused_loss
from tasks.training import checkpoints
from tasks.training.compute_plan import ComputePlan
from tasks.training.memory import saved_budget
from tasks.training.packing import collate
from tasks.training.step import Interrupted, PackedStep
from tasks.training.validation import StopEarly, Validation

_LOG_FILE = "step_log.parquet"


def sft_config(config: TrainingConfig, rows: int, checkpoint_folder: Path) -> SFTConfig:
    """`config` as TRL's settings. Everything that prints, reports or saves by itself is switched off."""
    steps = config.max_steps or math.ceil(config.epochs * math.ceil(rows / config.batch_size))
    return SFTConfig(
        output_dir=str(checkpoint_folder),
        per_device_train_batch_size=config.batch_size,  # every process reads all rows of a step
        gradient_accumulation_steps=1,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(config.schedule, config.schedule),
        warmup_steps=min(math.ceil(config.warmup_share * steps), steps - 1),  # the first of them has a rate of zero
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim={"adamw": "adamw_torch_fused"}.get(config.optimizer, config.optimizer),
        gradient_checkpointing=False,  # see activation_checkpointing.py, which works inside the compiled layers
        bf16=False,  # the model has its compute dtype already; autocast would only add casts
        fp16=config.compute_dtype == "float16",
        seed=config.seed,
        data_seed=config.seed,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )


def placeholder_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for SFTTrainer, which requires one although the rows are tokens already."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"-": 0}, unk_token="-")), pad_token="-")


class PackedTrainer(SFTTrainer):
    """SFTTrainer with `PackedStep` as its step. Its loop, optimizer, schedule and checkpoints are used.

    Args:
        model: a base with an adapter, from `base.load`.
        rows: data set with `input_ids` and `labels` (unshifted, -100: no loss), lists of ints.
        log: receives progress lines.
        validation_rows: the weights with the lowest loss on these rows are kept; None: the last weights.
    """

    def __init__(
        self,
        model: PeftModel,
        rows: Dataset,
        config: TrainingConfig,
        checkpoint_folder: Path,
        log: Callable[[str], None] = print,
        validation_rows: Dataset | None = None,
        collectives: Collectives | None = None,
    ) -> None:
        master = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(
            model=model,
            args=sft_config(config, len(rows), checkpoint_folder),
            train_dataset=rows,
            data_collator=collate,
            processing_class=placeholder_tokenizer(),
        )
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:  # SFTTrainer casts the adapter of a 4-bit base to bfloat16; it stays float32
                parameter.data = master[name]
        # not wrapped in DDP: `collectives` sums the gradients
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.collectives = collectives or Collectives()
        if self.collectives.count > 1:  # each process has its own dropout and noise
            torch.manual_seed(config.seed + self.collectives.rank)
        self.processing_class = None  # otherwise it is saved with the weights
        self._run_folder: str | None = None
        device, steps, epoch = self.args.device, self.args.max_steps, math.ceil(len(rows) / config.batch_size)
        validation = Validation(validation_rows, config, epoch, steps, log) if validation_rows else None
        backward, scaled = self.accelerator.backward, self.args.fp16
        run = (checkpoint_folder, steps, validation, self.collectives, log)
        self.step = PackedStep(model, device, *run, backward, scaled, config.micro_batch_tokens)
        use_fused_loss(cast(PreTrainedModel, model.get_base_model()), config.neftune_alpha)
        self.plan = ComputePlan(model, rows, config, self.args, self.collectives, log)
        self.plan.apply(model)
        self.remove_callback(PrinterCallback)
        self.add_callback(_StepEnd(self.step))

    def run(self) -> None:
        """Train from the last valid checkpoint, or from the beginning. Raises as `PackedStep.compute` does.

        After Interrupted, there is a checkpoint of the last finished step.
        """
        step, log = self.step, self.step.log
        if self.collectives.rank:
            self.collectives.barrier()  # until the first process has removed damaged checkpoints
        resume, budget = checkpoints.last_valid(step.folder, log), saved_budget(step.folder, log)
        if not self.collectives.rank:
            self.collectives.barrier()
        # the latest that all processes see: a shared file system may show a node an older state
        first = self.collectives.min(int(resume.name.rpartition("-")[2]) if resume else 0)
        resume = step.folder / f"checkpoint-{first}" if first else None
        if resume is not None:
            step.metrics.restore(resume / _LOG_FILE, first)
            if step.validation:
                step.validation.restore(resume, step.metrics.rows)
            log(f"resuming from the checkpoint of step {first}")
        # the same in all processes: all take part in the measurement, or none does
        step.micro_batch_tokens = self.collectives.max(budget) or step.micro_batch_tokens
        if not step.micro_batch_tokens:
            assert isinstance(self.train_dataset, Dataset)
            step.micro_batch_tokens = self.plan.fitting_tokens(step.model, self.train_dataset, self.collectives, log)
            weights = ", dequantized weights kept" if self.plan.dense else ""
            log(f"{self.plan.speed}, at most {step.micro_batch_tokens:,} tokens at once{weights}")
        self.collectives.broadcast(step.trained())
        try:
            if resume and first == self.args.max_steps:  # the run was interrupted in its last validation
                self._load_from_checkpoint(str(resume))
                self.state.global_step = first
            else:
                self.train(resume_from_checkpoint=str(resume) if resume else None)
            step.finish_pending()
            step.validate(self.state.global_step)
        except StopEarly:
            log(f"stopping early after step {self.state.global_step}: the validation loss no longer falls")
        except Interrupted:
            step.give_up()
            if self.state.global_step > first:
                self._save_checkpoint(step.model, None)
            raise
        if step.validation:
            step.validation.use_best(step.model)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Every process loads whole steps: it takes its own share, and knows the others' shares."""
        loader = super().get_train_dataloader()
        if self.collectives.count > 1:  # otherwise accelerate fills the last step of an epoch with rows seen already
            shard: Any = loader.batch_sampler
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return self.step.compute(inputs["rows"], self.state.global_step + 1, self._get_learning_rate())

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor:
        norm = super()._clip_grad_norm(model)
        self.step.gradients_done(norm)
        return norm

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.step.finish_pending()
        folder, several = self.step.folder, self.collectives.count > 1
        final = folder / f"checkpoint-{self.state.global_step}"
        aside = folder / f".writing-{'together' if several else os.getpid()}"
        self._run_folder = str(aside)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._run_folder = None
        self.collectives.barrier()  # each process writes its own random state
        if self.args.should_save:
            self.step.metrics.save(aside / final.name / _LOG_FILE)
            if self.step.validation:
                self.step.validation.save(aside / final.name)
            checkpoints.seal(aside / final.name, final)
            shutil.rmtree(aside)

    def _get_output_dir(self, trial: Any) -> str:
        return self._run_folder or super()._get_output_dir(trial)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the publishing stage writes the model card."""

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # not counted


class _StepEnd(TrainerCallback):
    def __init__(self, step: PackedStep) -> None:
        self.step = step

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step.began = Instant(args.device)
        self.step.schedule.saved = checkpoints.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.step.ended()
        if state.global_step < state.max_steps and self.step.schedule.save_after(state.global_step):
            control.should_save = True
