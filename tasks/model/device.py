"""The device a process computes on: its name, peak memory, clock and random numbers."""

import os
import resource
import time
from pathlib import Path

import torch


def device() -> torch.device:
    """The device of this process: its own GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def device_name() -> str:
    """Name of the GPU, or of the processor with its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else "CPU"
    return f"{name}, {torch.get_num_threads()} threads"


def peak_memory() -> int:
    """Peak memory in bytes: allocated on the GPU, or resident in this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Instant:
    """A point in time on the device: on a GPU, when the work queued so far is done."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event is not None:
            self.event.record()
        self.clock = time.monotonic()

    def wait(self) -> None:
        """Wait for it, and not for work that is queued later."""
        if self.event is not None:
            self.event.synchronize()

    def since(self, earlier: "Instant") -> float:
        """Seconds since an earlier instant; both must have been waited for."""
        if self.event is not None and earlier.event is not None:
            return earlier.event.elapsed_time(self.event) / 1e3
        return self.clock - earlier.clock


def random_state() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    if state[1:]:
        torch.cuda.set_rng_state_all(state[1:])
