"""A child process that converts a GGUF file into a folder of bf16 safetensors."""

from pathlib import Path
from typing import Any

from tasks.process.child import main
from tasks.process.quiet import silence


def convert(job: dict[str, Any]) -> None:
    """Job: gguf (file), folder (to fill)."""
    silence()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = Path(job["gguf"])
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, trust_remote_code=False
    )
    # save_pretrained refuses a model that still has its GGUF quantizer
    model.hf_quantizer = None  # type: ignore[assignment]
    del model.config.quantization_config
    model.save_pretrained(job["folder"])
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
    tokenizer.save_pretrained(job["folder"])


if __name__ == "__main__":
    main(convert)
