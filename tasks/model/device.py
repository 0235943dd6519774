"""The device a process trains on, its clock and its random numbers."""

import os
import time

import torch


def device() -> torch.device:
    """Where this process trains: its own GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


class Instant:
    """A moment in the device's work: on a GPU the one at which what was queued so far is done."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event is not None:
            self.event.record()
        self.clock = time.monotonic()

    def wait(self) -> None:
        """Until it has happened; work queued later is not waited for."""
        if self.event is not None:
            self.event.synchronize()

    def since(self, earlier: "Instant") -> float:
        """Seconds between the two; both must have happened."""
        if self.event is not None and earlier.event is not None:
            return earlier.event.elapsed_time(self.event) / 1e3
        return self.clock - earlier.clock


def random_state() -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    if state[1:]:
        torch.cuda.set_rng_state_all(state[1:])
