"""Validation loss, which decides when training stops and which weights are kept."""

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from tasks.config import TrainingConfig
from tasks.model.lora import refresh
from tasks.training.packing import Row, collate, divide, flatten
from tasks.training.step_metrics import Step, TrainingFailed

MicroBatches = Callable[[list[list[Row]]], Iterable[tuple[list[Row], float]]]

_BEST = "best.safetensors"
_BLOCK_ROWS = 1024  # made into tensors together
_LINE_SECONDS = 60.0  # between two lines of a long validation, so that it is not taken for hanging


class StopEarly(Exception):
    """The validation loss has not fallen for `training.patience` validations."""


class Validation:
    """The validations of a run.

    transformers' EarlyStoppingCallback is not used: with `load_best_model_at_end` it needs a checkpoint at every
    validation that is never removed and stays under its first path.

    Args:
        rows: data set with `input_ids` and `labels`; training uses none of these rows.
        epoch: optimizer steps of an epoch.
        last: the last step of training, after which there is always a validation.
    """

    def __init__(
        self, rows: Dataset, config: TrainingConfig, epoch: int, last: int, log: Callable[[str], None]
    ) -> None:
        self.rows, self.patience, self.last = rows, config.patience, last
        self.every = config.validation_steps or max(1, epoch // 4)
        self.points: list[tuple[int, float]] = []  # step and loss
        self.best: dict[str, torch.Tensor] = {}  # the trained weights with the lowest loss, on the CPU
        self._log = log

    def due(self, step: int) -> bool:
        """Whether to validate the weights after `step` now."""
        done = bool(self.points) and self.points[-1][0] == step
        return not done and step > 0 and (step % self.every == 0 or step == self.last)

    @torch.no_grad()
    # compiling the layers again without gradients would cost a minute, which few validations win back
    @torch.compiler.set_stance("force_eager")
    def sums(self, model: torch.nn.Module, micro_batches: MicroBatches, processes: int) -> torch.Tensor:
        """Sum of the losses and number of target tokens of this process's rows: float64 `[2]`.

        Changes neither the weights nor the random state.

        Args:
            micro_batches: makes this process's micro-batches from the rows of every process.
            processes: that share the rows.
        """
        device = next(model.parameters()).device
        sums, last_line = torch.zeros(2, dtype=torch.float64, device=device), time.monotonic()
        model.eval()  # without dropout and NEFTune; base.never_repack makes it safe on 4-bit weights
        try:
            for first in range(0, len(self.rows), _BLOCK_ROWS):
                block = self.rows.select(range(first, min(first + _BLOCK_ROWS, len(self.rows))))
                for group, factor in micro_batches(divide(collate([*block])["rows"].rows, processes)):
                    sums[0] += model(**vars(flatten(group, device))) * factor
                    sums[1] += sum(row.targets for row in group) * factor
                    if time.monotonic() - last_line >= _LINE_SECONDS:
                        last_line = time.monotonic()
                        self._log(f"validating: {first:,} of {len(self.rows):,} rows")
        finally:
            model.train()
        return sums

    def add(self, step: int, sums: torch.Tensor, model: torch.nn.Module) -> float:
        """Record the mean loss per target token after `step`, and the weights if it is the lowest so far."""
        total, targets = sums.tolist()
        loss, lowest = total / targets, min((loss for _, loss in self.points), default=math.inf)
        if not math.isfinite(loss):
            raise TrainingFailed(f"step {step}: the validation loss is {loss}. The last good checkpoint is kept.")
        comparison = "the lowest so far" if loss < lowest else f"not below {lowest:.4f} of step {self.best_step}"
        self._log(f"step {step} · validation loss {loss:.4f}, {comparison}")
        self.points.append((step, loss))
        if loss < lowest:
            self.best = {name: p.detach().cpu().clone() for name, p in _trained(model).items()}
        return loss

    @property
    def best_step(self) -> int:
        """The first step with the lowest loss; 0 before any validation."""
        return min(self.points, key=lambda point: point[1], default=(0, 0.0))[0]

    @property
    def patience_exhausted(self) -> bool:
        """Whether the loss has not fallen for `patience` validations."""
        return 0 < self.patience <= sum(step > self.best_step for step, _ in self.points)

    def use_best(self, model: torch.nn.Module) -> None:
        """Load the weights with the lowest loss into the model."""
        with torch.no_grad():
            for name, parameter in _trained(model).items():
                parameter.copy_(self.best[name])
        refresh(model)
        lowest = dict(self.points)[self.best_step]
        self._log(f"keeping the adapter of step {self.best_step} of {self.points[-1][0]}, validation loss {lowest:.4f}")

    def save(self, folder: Path) -> None:
        """Write the best weights into a checkpoint; the losses are in its step log."""
        if self.best:
            save_file(self.best, folder / _BEST)

    def restore(self, folder: Path, rows: list[Step]) -> None:
        """Load losses and best weights from a step log and its checkpoint."""
        self.points = [(row.step, row.validation_loss) for row in rows if row.validation_loss is not None]
        self.best = load_file(folder / _BEST) if self.points else {}

    def totals(self) -> dict[str, Any]:
        """The fields of `TrainingFacts` about validation."""
        losses = dict(self.points)
        return {
            "validation_rows": len(self.rows),
            "validation_loss": losses[self.best_step],
            "validation_loss_last": self.points[-1][1],
            "best_step": self.best_step,
            "stopped_early": self.points[-1][0] < self.last,
        }


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
