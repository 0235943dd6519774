"""The adapter whose weights training begins from (`training.start_from`), compared with what is to be trained.

Only safetensors is read. The optimizer and the learning rate begin anew.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.config import TrainingConfig
from tasks.download.hub import refusals
from tasks.errors import UserError
from tasks.model.targets import tensors_of
from tasks.store.artifact import check_folder
from tasks.store.checked import content_digest
from tasks.store.manifest import MANIFEST, DamagedArtifact
from tasks.store.model import BaseModelRef
from tasks.store.root import at_home, expanded

CHAMPION = "champion"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
_LARGEST = 1 << 20
"""Bytes of adapter_config.json."""
_FIELDS = {"r": "lora_r", "lora_alpha": "lora_alpha", "use_rslora": "rslora", "use_dora": "dora"}
"""Name in adapter_config.json → name in the configuration."""
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "layer_replication": (None,),
    # others, such as PiSSA, change the base's weights as well
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", None),
}

_SAME = "give both the same, or leave training.start_from empty"


class NotFetched(Exception):
    """An adapter of the Hub is not on this machine yet."""


class Start(BaseModel):
    """Args: folder: of an adapter; digest: sha256 of its weights, all of it that training reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    digest: str

    def verify(self) -> None:
        """Raises DamagedArtifact when the weights are not what they were."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if content_digest(Path(self.folder, WEIGHTS)) == self.digest:
                return
        raise DamagedArtifact(f"{self.folder}/{WEIGHTS} has changed or is gone")


def adapter_folder(start_from: str, local_files_only: bool = False) -> Path | None:
    """The folder that a path or a Hub id names, None for the champion or nothing; an adapter of the Hub is fetched.

    Raises:
        UserError: it does not exist, or the Hub refuses it.
        NotFetched: it is not on this machine, and `local_files_only` is set.
    """
    if start_from in ("", CHAMPION):
        return None
    folder = at_home(start_from, "training.start_from")
    if folder.is_dir():
        return folder.resolve()
    if start_from.startswith((".", "/", "~")) or start_from.count("/") != 1:
        raise UserError(f"training.start_from: the folder {folder.absolute()} does not exist.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = start_from.partition("@")
    options: dict[str, Any] = dict(revision=revision or None, allow_patterns=[SETTINGS, WEIGHTS])
    if local_files_only:
        try:
            return Path(snapshot_download(name, **options, local_files_only=True))
        except LocalEntryNotFoundError as error:
            raise NotFetched from error
    with refusals("training.start_from", start_from):
        return Path(snapshot_download(name, **options))


def check_start(folder: Path, name: str, config: TrainingConfig, model: BaseModelRef | None) -> Start:
    """Compare an adapter with what is to be trained; the layers are compared when the base is loaded.

    Args:
        name: what the configuration calls the adapter.
        model: the base; None: it is not on this machine yet.
    Raises:
        UserError: it is damaged, no LoRA adapter in safetensors, or of another base or shape.
    """
    if why := _why_not(folder, config, model):
        raise UserError(f"training.start_from: {name} {why}.")
    return Start(folder=str(folder), digest=content_digest(folder / WEIGHTS))


def _why_not(folder: Path, config: TrainingConfig, model: BaseModelRef | None) -> str:
    """Why an adapter cannot be continued, empty where it can; the end of a sentence that begins with its name."""
    try:
        place = folder.parent if folder.name == "adapter" else folder  # a result of training, or a version
        trained_on = check_folder(place).identity.inputs.get("model", "") if (place / MANIFEST).exists() else ""
    except DamagedArtifact as error:
        return f"is damaged: {error}"
    file = folder / SETTINGS
    if not file.is_file():
        return f"is no adapter: {folder} has no {SETTINGS}"
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        if not isinstance(settings := json.loads(file.read_bytes()), dict):
            raise ValueError("it is no JSON object")
    except (ValueError, RecursionError) as error:
        return f"is no adapter: {SETTINGS} cannot be read: {error}"
    for key, usual in _PLAIN.items():
        if (value := settings.get(key)) not in usual:
            return f"has {key} {value!r}, which cannot be continued"
    for key, field in _FIELDS.items():
        if (theirs := settings.get(key, False)) != (ours := getattr(config, field)):
            return f"was trained with {field} {theirs}, and training.{field} is {ours}; {_SAME}"
    if (saved := sorted(settings.get("modules_to_save") or [])) != sorted(set(config.modules_to_save)):
        return f"has modules_to_save {saved}, and training.modules_to_save is {config.modules_to_save}; {_SAME}"
    if model and (other := _other_base(settings, trained_on, model)):
        return f"was trained on another base: {other}"
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").exists()
        why = " (adapter_model.bin is pickled, and such files are never read: save it as safetensors)"
        return f"has no {WEIGHTS}{why if pickled else ''}"
    try:
        tensors = tensors_of(folder / WEIGHTS)
    except ValueError as error:
        return f"cannot be continued: {error}"
    for key, (kind, _) in tensors.items():
        if kind not in ("F32", "F16", "BF16"):
            return f"has {key}, which is of type {kind}, and weights are F32, F16 or BF16"
    layers = {key.split(".lora_")[0].rpartition(".")[2] for key in tensors if ".lora_" in key}
    if config.target_modules != ["all-linear"] and layers != set(config.target_modules):
        return (
            f"adapts {', '.join(sorted(layers)) or 'no layer'}, and training.target_modules is "
            f"{', '.join(config.target_modules)}; {_SAME}"
        )
    return ""


def _other_base(settings: dict[str, Any], trained_on: str, model: BaseModelRef) -> str:
    """How the base of an adapter differs, empty where it does not: by content where that is known, else by name."""
    if trained_on:
        return "" if trained_on == model.digest else "its weights, configuration or tokenizer have another content"
    theirs, revision = str(settings.get("base_model_name_or_path") or ""), settings.get("revision") or ""
    folders = [expanded(name).absolute() for name in (theirs, model.source)]
    if theirs.lower() != model.source.lower() and (not theirs or folders[0] != folders[1]):
        return f"{theirs or 'it names none'}, not {model.source} (base_model_name_or_path in {SETTINGS})"
    if revision and model.revision and revision != model.revision:
        return f"commit {revision} of it, not {model.revision}"
    return ""
