"""PEFT's `modules_to_save`: embedding and head are trained in full beside LoRA, for tokens that are new to the base.

The trained copy is float32, because in 16 bits rounding would lose most updates. The layer computes in the compute
dtype, so that training matches a 16-bit base with the saved adapter.
"""

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from tasks.errors import UserError


def check(base: PreTrainedModel, asked: list[str]) -> None:
    """Raises UserError if a name is neither the embedding's nor the head's, or the base has one matrix for both."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    names = [name.rsplit(".", 1)[-1] for name, module in base.named_modules() if module is embedding or module is head]
    if unknown := [name for name in asked if name not in names]:
        raise UserError(
            f"training.modules_to_save: {', '.join(unknown)} cannot be trained in full; of this base "
            f"{' and '.join(names)} can, all others are adapted (training.target_modules)"
        )
    if asked and embedding.weight is head.weight:
        raise UserError(
            f"training.modules_to_save: {' and '.join(names)} of this base are one matrix, and training a copy of it "
            "would make them two; leave it empty"
        )


def prepare(model: PeftModel, dtype: torch.dtype) -> None:
    """Make the trained copies float32, with outputs in `dtype`."""
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            copy = wrapper.modules_to_save["default"].float()
            copy.register_forward_hook(lambda _, inputs, out: out.to(dtype))
