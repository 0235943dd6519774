"""What a child process does not say: it talks in progress lines and errors only."""

import logging
import os
import warnings


def silence() -> None:
    """No progress bars, no telemetry, no network; warnings of libraries go, their errors stay."""
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
    # Steps differ in length; without this the allocator's blocks of many sizes fill a GPU that has room. Read when
    # torch is imported; the second name is the one before torch 2.10.
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        os.environ.setdefault(name, "expandable_segments:True")
    # Threads that spin while they wait take the core from the ones they wait for whenever another process wants a
    # core as well: about twice as slow beside one busy process, a tenth faster alone (benchmarks/NOTES.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.ERROR)
    for name in ("transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
