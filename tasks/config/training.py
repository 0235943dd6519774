"""How the adapter is trained."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.config.section import MOST, Name, Section


class TrainingConfig(Section):
    """Quantization, LoRA and optimization."""

    quantization: Literal["4bit", "none"] = Field(
        "4bit",
        description="4bit: QLoRA on a base in 4 bits through bitsandbytes. none: plain LoRA on the base as it is.",
    )
    quant_type: Literal["nf4", "fp4"] = Field("nf4", description="4-bit number format (bnb_4bit_quant_type).")
    compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Number format of the computation (bnb_4bit_compute_dtype)."
    )
    double_quant: bool = Field(
        False, description="Quantize the quantization constants too (bnb_4bit_use_double_quant)."
    )
    lora_r: int = Field(16, description="Rank of the LoRA matrices.", ge=1, le=1024)
    lora_alpha: int = Field(
        32, description="Scale of the LoRA update: alpha / r, with rslora alpha / sqrt(r).", ge=1, le=4096
    )
    lora_dropout: float = Field(0.0, description="Dropout on the LoRA input (probability).", ge=0, lt=1)
    target_modules: list[str] = Field(
        ["all-linear"],
        description="Names of the layers to adapt, or all-linear for every linear layer but the head.",
        min_length=1,
    )
    modules_to_save: list[str] = Field(
        [],
        description="embed_tokens, lm_head or both, by the base's own names: trained in full beside LoRA, for words "
        "that the base does not know; 16 bytes per value. Refused if the base uses one matrix for both.",
    )
    rslora: bool = Field(False, description="Rank-stabilized scaling, alpha / sqrt(r).")
    dora: bool = Field(False, description="Weight-decomposed LoRA (DoRA): a trained magnitude for each output.")
    start_from: Name = Field(
        "",
        description="Adapter whose weights training begins from: champion (the version in use of publishing.name), a "
        "folder, or a Hub id (owner/name or owner/name@revision). Base, rank, scale and layers have to be the same. "
        "Empty: from nothing.",
    )
    learning_rate: float = Field(2e-4, description="Peak learning rate.", gt=0, le=1)
    schedule: Literal["cosine", "linear", "constant"] = Field("cosine", description="Learning rate after the warm-up.")
    warmup_share: float = Field(
        0.05, description="Share of the steps in which the learning rate rises (a fraction of 1).", ge=0, lt=1
    )
    weight_decay: float = Field(0.0, description="AdamW weight decay.", ge=0, le=1)
    max_grad_norm: float = Field(1.0, description="Gradient norm above which gradients are scaled down.", gt=0)
    neftune_alpha: float = Field(
        0.0, description="NEFTune: noise on the embeddings while training; 5 is usual, 0: none.", ge=0, le=100
    )
    optimizer: Literal["adamw", "paged_adamw_8bit"] = Field(
        "adamw", description="adamw: torch's fused AdamW. paged_adamw_8bit: bitsandbytes, less memory, GPU only."
    )
    batch_size: int = Field(
        8,
        description="Rows per optimizer step, over all processes. They are packed into flat sequences of at most "
        "micro_batch_tokens, so this decides the result and micro_batch_tokens only speed and memory.",
        ge=1,
        le=65_536,
    )
    epochs: float = Field(1.0, description="Passes over the training rows if max_steps is 0.", gt=0, le=1000)
    max_steps: int = Field(0, description="Optimizer steps; 0: as many as `epochs` needs.", ge=0, le=MOST)
    validation_share: float = Field(
        0.0,
        description="Share of the training rows held back (a fraction of 1; 0: none); the adapter with the lowest loss "
        "on them is kept. A hash of a row's id or group decides. Held-out rows, which the scores come from, are never "
        "used for this.",
        ge=0,
        le=0.5,
    )
    validation_steps: int = Field(
        0, description="Optimizer steps between two validations; 0: four validations an epoch.", ge=0, le=MOST
    )
    patience: int = Field(
        0,
        description="Training ends after this many validations in a row without a lower loss; 0: never.",
        ge=0,
        le=MOST,
    )
    micro_batch_tokens: int = Field(
        0,
        description="Tokens in one forward pass; 0: as many as fit, which is measured. Halved automatically, at the "
        "same rows per step, when the GPU runs out of memory.",
        ge=0,
        le=1_048_576,
    )
    speed: Literal["auto", "fast", "balanced", "lean"] = Field(
        "auto",
        description="What is kept for the backward pass. fast: everything. balanced: all but norms and activations, a "
        "third less memory. lean: the input of each layer, a tenth of the memory, a third slower. auto: the fastest "
        "that fits.",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Compile the decoder layers (torch.compile) on a GPU: faster after about a minute of start-up. "
        "auto: when the run is long enough to gain from it.",
    )
    processes: int = Field(
        1,
        description="Training processes on this machine, each with a GPU of its own; the rows of a step are divided "
        "among them. 0: one for each GPU. For several machines see docs/gpus.md.",
        ge=0,
        le=64,
    )
    sharding: Literal["auto", "never", "always"] = Field(
        "auto",
        description="Whether the frozen base is divided among the processes instead of copied to each: slower, and the "
        "layers are not compiled. auto: when the base does not fit on one GPU.",
    )
    seed: int = Field(0, description="Seed of row order, adapter initialization and dropout.", ge=0, lt=2**32)

    @model_validator(mode="after")
    def _none_is_void(self) -> Self:
        """Refuse a setting that has no effect because of another one."""
        in_4_bits, divided = self.quantization == "4bit", self.sharding == "always"
        rules = [
            (
                (self.patience or self.validation_steps) and not self.validation_share,
                "training.patience and training.validation_steps need rows to validate on: set "
                "training.validation_share, for instance to 0.05",
            ),
            (
                not in_4_bits and (self.quant_type != "nf4" or self.double_quant),
                "training.quant_type and training.double_quant need a base in 4 bits: set training.quantization to "
                "4bit, or leave them out",
            ),
            (
                self.max_steps and self.epochs != 1,
                "training.max_steps and training.epochs both say when training ends: give one of them, and leave the "
                "other at its default",
            ),
            (
                "all-linear" in self.target_modules and len(self.target_modules) > 1,
                "training.target_modules: all-linear stands for every linear layer; give it alone, or only names",
            ),
            (
                self.processes > self.batch_size,
                f"training.processes {self.processes} leaves processes without a row of a step's {self.batch_size}: "
                "lower it, or raise training.batch_size",
            ),
            (
                divided and self.processes == 1,
                "training.sharding always needs several processes: set training.processes to 2 or more",
            ),
            (divided and self.dora, "training.sharding always cannot divide DoRA layers: set training.dora to false"),
            (
                divided and self.compile == "always",
                "training.sharding always leaves the layers uncompiled: set training.compile to auto or never",
            ),
        ]
        if broken := [sentence for wrong, sentence in rules if wrong]:
            raise ValueError(". ".join(broken))
        return self
