"""What others make of train_throughput.py's base and rows: plain TRL, the article's recipe, Unsloth.

    trl            SFTTrainer, packing 2048, batch 4, Liger, checkpointing
    trl_plain      SFTTrainer with its defaults, batch 8
    trl_match      the same without packing, on the rows and in the order of mode match
    article        transformers' Trainer: batch 1 x 4, float16, paged AdamW in 8 bits, checkpointing, no packing
    unsloth        packing 2048, batch 4, nothing computed again
    unsloth_lean   packing 4096, batch 4, its own checkpointing

TRL learns the completions, the other two, as they come, prompts as well: their losses are not to be compared with the
others', their speed hardly depends on it.
"""

import argparse
import os
import shutil
import tempfile
import time
from typing import Any

WARM = 5  # steps left out of the speed
SETTINGS: dict[str, dict[str, Any]] = {
    "trl": {"per_device_train_batch_size": 4, "packing": True, "max_length": 2048, "use_liger_kernel": True},
    "trl_plain": {"per_device_train_batch_size": 8, "max_length": 2048},
    "trl_match": {"per_device_train_batch_size": 8, "max_length": 2048, "max_steps": 25},
    "article": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 12},
    "unsloth": {"per_device_train_batch_size": 4, "packing": True, "max_length": 2048},
    "unsloth_lean": {"per_device_train_batch_size": 4, "packing": True, "max_length": 4096},
}
LORA: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def first_import(mode: str) -> None:
    """Unsloth puts its own classes into trl and transformers: who imports those before it gets the plain ones."""
    if mode.startswith("unsloth"):
        os.environ.update(
            HF_HUB_OFFLINE="1",
            TOKENIZERS_PARALLELISM="false",
            UNSLOTH_DISABLE_STATISTICS="1",
            UNSLOTH_COMPILE_LOCATION=tempfile.mkdtemp(prefix="unsloth-"),  # not the working directory
        )
        import unsloth  # noqa: F401


def run(mode: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one mode on the rows; tokens without padding, seconds, losses and norms of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "constant",
            "optim": "adamw_torch_fused",
            "seed": 0,
            "data_seed": 0,
            "max_steps": 20,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            **SETTINGS[mode],
        }
        make = {"trl": trl, "article": article, "unsloth": unsloth}[mode.partition("_")[0]]
        return timed(make(mode, options, arguments))


def trl(mode: str, options: dict[str, Any], arguments: argparse.Namespace) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(
        arguments.base, dtype=torch.bfloat16, device_map={"": 0}, attn_implementation="sdpa"
    )
    return SFTTrainer(
        model=model,
        train_dataset=Dataset.from_list(texts(arguments)),
        processing_class=tokenizer(arguments),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        args=SFTConfig(bf16=True, **options),
    )


def article(mode: str, options: dict[str, Any], arguments: argparse.Namespace) -> Any:
    import torch
    from bitsandbytes.nn import Linear4bit
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(arguments.base, dtype=torch.float16, device_map={"": 0})
    for module in model.modules():
        if isinstance(module, Linear4bit):  # a quantized checkpoint's own setting wins over from_pretrained's
            module.compute_dtype, module.compute_type_is_set = torch.float16, True
    model.gradient_checkpointing_enable()
    model = get_peft_model(prepare_model_for_kbit_training(model), LoraConfig(task_type="CAUSAL_LM", **LORA))
    model.config.use_cache = False
    words = tokenizer(arguments)
    rows = [words(text["prompt"] + text["completion"]) for text in texts(arguments)]
    return Trainer(
        model=model,
        train_dataset=Dataset.from_list([{"input_ids": row["input_ids"]} for row in rows]),
        args=TrainingArguments(gradient_checkpointing=True, **options | {"optim": "paged_adamw_8bit"}),
        data_collator=DataCollatorForLanguageModeling(words, mlm=False),
    )


def unsloth(mode: str, options: dict[str, Any], arguments: argparse.Namespace) -> Any:
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    for file in arguments.tokenizer.glob("tokenizer*.json"):  # read from beside the weights
        shutil.copy(file, arguments.base)
    model, words = FastLanguageModel.from_pretrained(
        str(arguments.base),
        max_seq_length=options["max_length"],
        load_in_4bit=True,
        dtype=torch.bfloat16,
        local_files_only=True,
    )
    checkpointing = "unsloth" if mode == "unsloth_lean" else False
    model = FastLanguageModel.get_peft_model(
        model, lora_dropout=0, bias="none", use_gradient_checkpointing=checkpointing, **LORA
    )
    rows = [{"text": text["prompt"] + text["completion"]} for text in texts(arguments)]
    return SFTTrainer(
        model=model,
        train_dataset=Dataset.from_list(rows),
        processing_class=words,
        args=SFTConfig(bf16=True, dataset_text_field="text", dataset_num_proc=1, **options),
    )


def texts(arguments: argparse.Namespace) -> list[dict[str, str]]:
    import train_throughput

    return train_throughput.texts(arguments.rows)


def tokenizer(arguments: argparse.Namespace) -> Any:
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(arguments.tokenizer)
    words.pad_token = words.eos_token
    return words


def timed(trainer: Any) -> dict[str, Any]:
    """Train, counting tokens that are not padding from the end of step `WARM` on."""
    import torch
    from transformers import TrainerCallback

    from tasks.training.compute_plan import operations_per_token

    counted: dict[str, Any] = {"tokens": 0}
    step = trainer.training_step

    def counting(model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        mask = inputs.get("attention_mask")
        counted["tokens"] += int(inputs["input_ids"].numel() if mask is None or mask.dim() != 2 else mask.sum())
        return step(model, inputs, *rest, **more)

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == WARM:
                torch.cuda.synchronize()
                counted.update(tokens=0, began=time.perf_counter())

    trainer.training_step = counting
    trainer.add_callback(Clock())
    trainer.train()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - counted["began"]
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens": counted["tokens"],
        "seconds": seconds,
        "losses": [float(entry["loss"]) for entry in history],
        "norms": [float(entry["grad_norm"]) for entry in history],
        "tokens_per_step": counted["tokens"] / (len(history) - WARM),
        "flops": operations_per_token(trainer.model),
    }
