"""Quantization of the base: the four fields of `training` that decide its weights in memory."""

from typing import Any

FIELDS = ("quantization", "quant_type", "compute_dtype", "double_quant")


def load_options(*, quantization: str, quant_type: str, compute_dtype: str, double_quant: bool) -> dict[str, Any]:
    """Arguments of `from_pretrained`, from fields of `training`: also safetensors only, and no code of the model."""
    import torch  # here: the flow reads the names above without it
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {
        "dtype": getattr(torch, compute_dtype),
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    if quantization == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quant_type,
            bnb_4bit_compute_dtype=options["dtype"],
            bnb_4bit_use_double_quant=double_quant,
        )
    return options
