"""Loads the base model in the configured precision, adds a new adapter, and checks both."""

import os
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed

from tasks.config import TrainingConfig
from tasks.errors import UserError
from tasks.model import attention, modules_to_save, quantization
from tasks.model.activation_checkpointing import decoder_layers
from tasks.model.lora import fuse
from tasks.model.sharding import shard


def load(
    folder: Path, config: TrainingConfig, device: torch.device, sharded: bool = False, start: str = ""
) -> PeftModel:
    """The base of `folder` on `device`, quantized as `config` says, with LoRA layers ready to train.

    Args:
        sharded: load and quantize in the host's memory, then divide the base among the processes (`sharding.py`).
        start: folder of an adapter whose weights the layers have; empty: new ones.
    Raises:
        UserError: the architecture or a target module is not supported, a setting needs a GPU, or `start` has other
            layers.
    """
    for field, value in (("compute_dtype", "float16"), ("optimizer", "paged_adamw_8bit"), ("compile", "always")):
        if device.type == "cpu" and getattr(config, field) == value:
            raise UserError(f"training.{field} {value} needs a GPU, and there is none")
    if device.type == "cuda":  # what torch's FlashAttention takes
        if config.compute_dtype == "float32":
            raise UserError("training.compute_dtype float32 is for CPUs: set bfloat16 or float16")
        if (generation := torch.cuda.get_device_capability(device)) < (8, 0):
            raise UserError(
                f"{torch.cuda.get_device_name(device)} has compute capability {generation[0]}.{generation[1]}; "
                "attention over packed rows needs 8.0 (Ampere) or newer"
            )
    dtype = getattr(torch, config.compute_dtype)
    if sharded:  # quantizing on the CPU takes all its cores; the launcher leaves each process one
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    attention.check_supported(AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    base = AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation=attention.NAME,
        device_map={"": "cpu" if sharded else device},
        local_files_only=True,
        **quantization.load_options(**{name: getattr(config, name) for name in quantization.FIELDS}),
    )
    if config.quantization == "4bit" and any(p.ndim > 2 for layer in decoder_layers(base) for p in layer.parameters()):
        raise UserError("this base has experts, which would not be quantized: set training.quantization to none")
    model = add_adapter(base, config)
    if config.quantization == "4bit":
        check_quantized(model)
    never_repack(model)
    modules_to_save.prepare(model, dtype)
    if start:
        take_over(model, Path(start))
    fuse(model, dtype)
    if sharded:
        shard(model, device)
    return model


def add_adapter(base: PreTrainedModel, config: TrainingConfig) -> PeftModel:
    """LoRA on the target modules. Its weights are float32, and `config.seed` decides their initialization."""
    head = base.get_output_embeddings()
    layers = [(name, module) for name, module in base.named_modules() if module is not head]
    # by exact type: a mixture's router is a subclass
    linear = {name.rpartition(".")[2] for name, module in layers if type(module) in (torch.nn.Linear, Linear4bit)}
    if not linear:
        raise UserError("this base has no linear layers (torch.nn.Linear) for an adapter")
    asked = config.target_modules
    if asked != ["all-linear"] and (unknown := [name for name in asked if name not in linear]):
        raise UserError(
            f"training.target_modules: no linear layer is named {', '.join(unknown)}; this base has "
            f"{', '.join(sorted(linear))} (or all-linear)"
        )
    modules_to_save.check(base, config.modules_to_save)
    set_seed(config.seed)
    return get_peft_model(
        base,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=sorted(linear if asked == ["all-linear"] else asked),
            use_rslora=config.rslora,
            use_dora=config.dora,
            modules_to_save=sorted(set(config.modules_to_save)) or None,
        ),
    )


def take_over(model: PeftModel, adapter: Path) -> None:
    """Give the new layers an adapter's weights. Raises UserError if shapes differ, or a weight is not finite."""
    given = load_file(adapter / "adapter_model.safetensors")
    wanted = {name: f"as {list(weight.shape)}" for name, weight in get_peft_model_state_dict(model).items()}
    there = {name: f"as {list(weight.shape)}" for name, weight in given.items()}
    for name in sorted(wanted.keys() | there.keys()):
        if wanted.get(name) != there.get(name):
            raise UserError(
                f"training.start_from: {adapter} has {name} {there.get(name, 'not at all')}, and this run trains it "
                f"{wanted.get(name, 'not at all')}: training.target_modules and training.lora_r have to be its own"
            )
        if not given[name].isfinite().all():
            raise UserError(f"training.start_from: {adapter}: {name} is not finite")
    set_peft_model_state_dict(model, given)


def check_quantized(model: PeftModel) -> None:
    """Raises RuntimeError that names an adapted layer without 4-bit weights."""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer = module.get_base_layer()
            if not isinstance(layer, Linear4bit) or getattr(layer.weight, "quant_state", None) is None:
                raise RuntimeError(
                    f"4-bit was configured, but {name} is a {type(layer).__name__} without 4-bit weights"
                )


def never_repack(model: torch.nn.Module) -> None:
    """Switch off bitsandbytes' repacking of 4-bit weights on CPUs with AVX-512-BF16.

    The first forward in eval mode would repack them for inference. After that, training would have no gradient through
    the base, with only a warning.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
