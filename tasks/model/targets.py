"""Check `training.target_modules` against the headers of a model's safetensors files, without torch."""

import json
import struct
from pathlib import Path

from tasks.config import TrainingConfig
from tasks.errors import UserError

LONGEST_HEADER = 100_000_000
"""Bytes, as safetensors itself allows."""


def check_targets(folder: Path, config: TrainingConfig) -> None:
    """Check that every configured layer has a weight of two dimensions; loading the base checks the rest.

    Raises:
        UserError: one has none.
    """
    asked = [name for name in config.target_modules if name != "all-linear"]
    if not asked:
        return
    there = {name.split(".")[-2] for file in folder.glob("*.safetensors") for name in _matrices(file)}
    if unknown := [name for name in asked if name not in there]:
        raise UserError(
            f"training.target_modules: no linear layer is named {', '.join(unknown)}; this base has "
            f"{', '.join(sorted(there - {'embed_tokens', 'lm_head', 'wte'}))} (or all-linear)."
        )


def _matrices(file: Path) -> list[str]:
    """Names of the weights of two dimensions, such as `model.layers.0.mlp.up_proj.weight`.

    Raises:
        UserError: the file is no safetensors.
    """
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(min(length, LONGEST_HEADER)))
        return [name for name, about in header.items() if name.count(".") and len(about.get("shape", ())) == 2]
    except (ValueError, struct.error, AttributeError) as error:
        raise UserError(f"model.base: {file} is no safetensors file, or damaged: {error}.") from error
