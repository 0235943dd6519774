"""A step's numbers on their way from the device, and what they must not be."""

import math
from dataclasses import dataclass

import torch

from tasks.model.device import Instant


class TrainingFailed(RuntimeError):
    """Training would go on without learning; the checkpoints before this step are good."""


@dataclass
class Unsettled:
    """A step whose numbers are still on the device."""

    step: int
    tokens: int
    learnt: int
    learning_rate: float
    loss: torch.Tensor
    numbers: torch.Tensor | None = None  # loss and gradient norm, on the CPU once `end` has happened
    end: Instant | None = None

    def measured(self, norm: torch.Tensor, device: torch.device) -> None:
        """The step's gradients are done, and this is their norm; nothing is waited for."""
        numbers = torch.stack([self.loss.float(), norm.detach().float()])
        if numbers.is_cuda:
            pinned = torch.empty(2, pin_memory=True)
            pinned.copy_(numbers, non_blocking=True)
            numbers = pinned
        self.numbers, self.end = numbers, Instant(device)

    def read(self, scaled: bool) -> tuple[float, float]:
        """Wait for loss and gradient norm.

        Args:
            scaled: a gradient scaler is at work; it leaves out a step whose gradients are not finite, by design.
        Raises:
            TrainingFailed: one of them is not a number, or the gradient is zero.
        """
        assert self.numbers is not None and self.end is not None
        self.end.wait()
        loss, norm = self.numbers.tolist()
        if not math.isfinite(loss) or not (math.isfinite(norm) or scaled):
            raise TrainingFailed(
                f"step {self.step}: loss {loss:.4g}, gradient norm {norm:.4g}. Training diverged; lower "
                "training.learning_rate. The last good checkpoint is kept."
            )
        if norm == 0:
            raise TrainingFailed(
                f"step {self.step}: the gradient is zero, so nothing is learnt (loss {loss:.4g}). "
                "The last good checkpoint is kept."
            )
        return loss, norm
