"""A training configuration in the words of TRL's SFTTrainer."""

import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig

from tasks.config import TrainingConfig


def arguments(config: TrainingConfig, rows: int, checkpoint_folder: Path) -> SFTConfig:
    """`config` in TRL's words, and everything that prints, reports or saves by itself switched off."""
    steps = config.max_steps or math.ceil(config.epochs * math.ceil(rows / config.batch_size))
    return SFTConfig(
        output_dir=str(checkpoint_folder),
        per_device_train_batch_size=config.batch_size,  # every process reads all rows of a step
        gradient_accumulation_steps=1,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(config.schedule, config.schedule),
        warmup_steps=min(math.ceil(config.warmup_share * steps), steps - 1),  # its first step has a rate of zero
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim={"adamw": "adamw_torch_fused"}.get(config.optimizer, config.optimizer),
        gradient_checkpointing=False,  # memory.py does it, inside the compiled layers
        bf16=False,  # the model is in its compute dtype already; autocast would only add casts
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


def no_tokenizer() -> PreTrainedTokenizerFast:
    """SFTTrainer insists on a tokenizer, though the rows are tokens already."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"-": 0}, unk_token="-")), pad_token="-")
