"""The names of layers in safetensors files, read without torch; `training.target_modules` is checked against them."""

from pathlib import Path

from tasks.config import TrainingConfig
from tasks.errors import UserError


def check_targets(folder: Path, config: TrainingConfig) -> None:
    """Raises UserError if a configured layer has no weight of two dimensions; loading the base checks the rest."""
    asked = [name for name in config.target_modules if name != "all-linear"]
    if not asked:
        return
    try:
        tensors = [tensor for file in folder.glob("*.safetensors") for tensor in tensors_of(file).items()]
    except ValueError as error:
        raise UserError(f"model.base: {error}.") from error
    there = {name.split(".")[-2] for name, (_, shape) in tensors if "." in name and len(shape) == 2}
    if unknown := [name for name in asked if name not in there]:
        raise UserError(
            f"training.target_modules: no linear layer is named {', '.join(unknown)}; this base has "
            f"{', '.join(sorted(there - {'embed_tokens', 'lm_head', 'wte'}))} (or all-linear)."
        )


def tensors_of(file: Path) -> dict[str, tuple[str, list[int]]]:
    """Name → type, such as "BF16", and shape, from a file's header. Raises ValueError if it is no safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # it is no mapping
            return {name: (part.get_dtype(), part.get_shape()) for name, part in parts.items()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is no safetensors file, or damaged: {error}") from error
