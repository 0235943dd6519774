"""Check `training.target_modules` against the names in a model's safetensors files, without torch."""

from pathlib import Path

from tasks.config import TrainingConfig
from tasks.errors import UserError


def check_targets(folder: Path, config: TrainingConfig) -> None:
    """Check that every configured layer has a weight of two dimensions; loading the base checks the rest.

    Raises:
        UserError: one has none, or a file is no safetensors.
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
    """Names of the weights of two dimensions, such as `model.layers.0.mlp.up_proj.weight`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as weights:
            names: list[str] = [*weights.keys()]
            return [name for name in names if "." in name and len(weights.get_slice(name).get_shape()) == 2]
    except SafetensorError as error:
        raise UserError(f"model.base: {file} is no safetensors file, or damaged: {error}.") from error
