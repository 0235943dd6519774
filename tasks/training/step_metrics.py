"""Loss, gradient norm and speed of every step: read from the device, logged and saved."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tasks.model.device import Instant, peak_memory
from tasks.training.schema import LOG_SCHEMA

_LINE_SECONDS = 5.0


class TrainingFailed(RuntimeError):
    """Training cannot continue. The checkpoints before this step are good."""


@dataclass
class PendingStep:
    """Loss and gradient norm of one step, read asynchronously."""

    step: int
    tokens: int
    targets: int
    learning_rate: float
    loss: torch.Tensor
    numbers: torch.Tensor | None = None  # loss and gradient norm, on the CPU when `end` has been reached
    end: Instant | None = None

    def start_reading(self, norm: torch.Tensor, device: torch.device) -> None:
        """Start to copy loss and gradient norm to the CPU without waiting."""
        numbers = torch.stack([self.loss.float(), norm.detach().float()])
        if numbers.is_cuda:
            pinned = torch.empty(2, pin_memory=True)
            pinned.copy_(numbers, non_blocking=True)
            numbers = pinned
        self.numbers, self.end = numbers, Instant(device)

    def read(self, scaled: bool) -> tuple[float, float]:
        """Wait for loss and gradient norm.

        Args:
            scaled: a gradient scaler is used, which skips a step whose gradients are not finite.
        Raises:
            TrainingFailed: one of them is not finite, or the norm is zero.
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
                f"step {self.step}: the gradient is zero, so the adapter does not change (loss {loss:.4g}). "
                "The last good checkpoint is kept."
            )
        return loss, norm


@dataclass(frozen=True)
class Step:
    """One optimizer step: tokens without padding, mean loss over the target tokens, gradient norm before clipping."""

    step: int
    tokens: int
    learnt_tokens: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    memory_bytes: int
    seconds: float
    validation_loss: float | None = None


class StepLog:
    """The finished steps of a run. A resumed run starts with those of its checkpoint."""

    def __init__(self, steps: int, log: Callable[[str], None] = print) -> None:
        self.rows: list[Step] = []
        self.resumed_from = self._restored = 0
        self._steps, self._log = steps, log
        self._last_line = time.monotonic()

    def add(self, pending: PendingStep, loss: float, grad_norm: float, seconds: float) -> None:
        """Record a finished step, and log a line every few seconds."""
        now, speed = time.monotonic(), pending.tokens / max(seconds, 1e-9)
        numbers = (loss, pending.learning_rate, grad_norm, speed, peak_memory(), seconds)
        self.rows.append(row := Step(pending.step, pending.tokens, pending.targets, *numbers))
        if now - self._last_line >= _LINE_SECONDS or row.step == self._steps:
            self._last_line = now
            self._log(self._line(row))

    def add_validation(self, loss: float) -> None:
        """Of the weights after the last finished step."""
        self.rows[-1] = replace(self.rows[-1], validation_loss=loss)

    def _line(self, row: Step) -> str:
        recent = self.rows[max(self._restored + 1, len(self.rows) - 20) :] or [row]
        seconds = sum(r.seconds for r in recent)
        left = round(seconds / len(recent) * (self._steps - row.step))
        return (
            f"step {row.step}/{self._steps} · loss {row.loss:.3f} · grad norm {row.grad_norm:.2f} · "
            f"{sum(r.tokens for r in recent) / seconds:,.0f} tokens/s · {left // 60}:{left % 60:02d} left"
        )

    def save(self, file: Path) -> None:
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in self.rows], schema=LOG_SCHEMA), file)

    def restore(self, file: Path, step: int) -> None:
        """Load the steps that the checkpoint of `step` saved."""
        self.rows = [Step(**row) for row in pq.read_table(file).to_pylist()]
        self.resumed_from, self._restored = step, len(self.rows)

    def totals(self) -> dict[str, Any]:
        """Totals over all steps. The speed excludes the first step of every attempt, which includes the warm-up."""
        warm = [r for r in self.rows if r.step not in (1, self.resumed_from + 1)] or self.rows
        return {
            "steps": len(self.rows),
            "tokens": sum(r.tokens for r in self.rows),
            "learnt_tokens": sum(r.learnt_tokens for r in self.rows),
            "seconds": sum(r.seconds for r in self.rows),
            "tokens_per_second": sum(r.tokens for r in warm) / sum(r.seconds for r in warm),
            "peak_memory_bytes": max(r.memory_bytes for r in self.rows),
            "loss_first": self.rows[0].loss,
            "loss_last": self.rows[-1].loss,
            "resumed_from_step": self.resumed_from,
        }
