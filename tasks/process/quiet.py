"""Settings for a child process that prints only progress lines and errors."""

import atexit
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path


def compile_cache() -> Path:
    """A folder for torch.compile's cache that no other user can write to, because torch unpickles what it finds there.

    torch's default is under /tmp, where any user of the machine can create it first. Without a home directory the
    folder is a new one for this process.
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
    # Steps differ in length, and without this the allocator's blocks of many sizes fragment the GPU's memory. Read when
    # torch is imported; the second name is for torch before 2.10.
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        os.environ.setdefault(name, "expandable_segments:True")
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compile_cache())
    # Threads that spin while they wait take the core from those they wait for as soon as another process needs a core:
    # half the speed beside one busy process, a tenth faster on an idle machine (benchmarks/NOTES.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.ERROR)
    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
