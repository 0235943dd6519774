"""Settings of a child process that prints only progress and errors."""

import atexit
import logging
import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path


def compile_cache() -> Path:
    """A folder for torch.compile's cache that no other user can write to, because torch unpickles its content.

    torch's default is under /tmp, where any user of the machine can create it first. Without a home directory it is a
    temporary folder.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "qlora-flow", "torchinductor")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    new = tempfile.mkdtemp(prefix="qlora-flow-compiled-")
    atexit.register(shutil.rmtree, new, ignore_errors=True)
    return Path(new)


def without_torch() -> None:
    """Load tokenizers and chat templates without torch, which transformers would import: seconds, and half a GiB.

    For a process that uses transformers for nothing else.
    """
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails, and nothing looks for it


def silence() -> None:
    """Switch off progress bars, telemetry, the network and libraries' warnings; their errors are still printed."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        HF_DATASETS_DISABLE_PROGRESS_BARS="1",
        TRANSFORMERS_VERBOSITY="error",
        TRL_EXPERIMENTAL_SILENCE="1",
        TOKENIZERS_PARALLELISM="false",
        BITSANDBYTES_NOWELCOME="1",
    )
    # Steps differ in length; without this setting blocks of many sizes fragment the GPU's memory. torch reads it on
    # import; the second name is for torch before 2.10.
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        os.environ.setdefault(name, "expandable_segments:True")
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compile_cache())
    # Threads that wait do not spin: spinning gains a tenth on an idle machine and halves the speed beside another busy
    # process (benchmarks/NOTES.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # torch and oneDNN each keep code and memory of the last 1,024 matrix products, by shape: a MiB each on a CPU. Every
    # micro-batch of packed rows has shapes of its own, about thirty, so this would grow to more than a GiB in a run.
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.ERROR)
    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
