"""Loss on training rows that were held back: it says when to stop, and which weights are the best."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from tasks.config import TrainingConfig
from tasks.model.lora import refresh
from tasks.training.distributed.collectives import Peers
from tasks.training.log import Step
from tasks.training.packing import Row, collate, divide, flatten
from tasks.training.step_metrics import TrainingFailed

Turns = Callable[[list[list[Row]]], Iterable[tuple[list[Row], float]]]

_BEST = "best.safetensors"
_AT_ONCE = 1024  # rows made into tensors together
_LINE_SECONDS = 60.0  # between two lines of a long validation, which is not to be taken for hanging


class Enough(Exception):
    """The loss has not fallen for as many validations as the configuration allows: nothing is wrong."""


class Validation:
    """What validations have found so far.

    Not transformers' EarlyStoppingCallback: with `load_best_model_at_end` that one needs a checkpoint at every
    validation, never removed, under the path at which it was first written.

    Args:
        rows: data set with `input_ids` and `labels`, none of them trained on.
        config: how often, and how long to wait for a lower loss.
        epoch: optimizer steps of an epoch.
        last: the step after which training ends, which is validated in any case.
        say: receives progress lines.
    """

    def __init__(
        self, rows: Dataset, config: TrainingConfig, epoch: int, last: int, say: Callable[[str], None]
    ) -> None:
        self.rows, self.patience, self.last = rows, config.patience, last
        self.every = config.validation_steps or max(1, epoch // 4)
        self.points: list[tuple[int, float]] = []  # step and loss
        self.best: dict[str, torch.Tensor] = {}  # the trained weights where the loss was lowest, on the CPU
        self._say = say

    def due(self, step: int) -> bool:
        """Whether the weights after `step` are to be validated and were not yet."""
        seen = bool(self.points) and self.points[-1][0] == step
        return not seen and step > 0 and (step % self.every == 0 or step == self.last)

    @torch.no_grad()
    # compiling the layers once more, without gradients, costs a minute that few validations win back
    @torch.compiler.set_stance("force_eager")
    def sums(self, model: torch.nn.Module, turns: Turns, peers: Peers) -> torch.Tensor:
        """Sum of losses and number of learnt tokens over this process's share of the rows: float64 `[2]`.

        Nothing random happens, and the weights stay as they are.

        Args:
            turns: makes this process's micro-batches from the rows of every process.
        """
        device = next(model.parameters()).device
        sums, said = torch.zeros(2, dtype=torch.float64, device=device), time.monotonic()
        model.eval()  # dropout and NEFTune off; base.never_repack makes it safe on 4-bit weights
        try:
            for done, group, factor in self._groups(turns, peers):
                sums[0] += model(**vars(flatten(group, device))) * factor
                sums[1] += sum(row.learnt for row in group) * factor
                if time.monotonic() - said >= _LINE_SECONDS:
                    said = time.monotonic()
                    self._say(f"validating: {done:,} of {len(self.rows):,} rows")
        finally:
            model.train()
        return sums

    def _groups(self, turns: Turns, peers: Peers) -> Iterator[tuple[int, list[Row], float]]:
        """This process's share of the rows, packed, each with the rows of all processes before it."""
        for first in range(0, len(self.rows), _AT_ONCE):
            some = self.rows.select(range(first, min(first + _AT_ONCE, len(self.rows))))
            for group, factor in turns(divide(collate([*some])["rows"].rows, peers.count)):
                yield first, group, factor

    def add(self, step: int, sums: torch.Tensor, model: torch.nn.Module) -> float:
        """Note the mean loss over the learnt tokens after `step`, and the weights when it is the lowest so far.

        Args:
            sums: as `sums` gives them, of all processes.
        Raises:
            TrainingFailed: the loss is not a number.
        """
        total, learnt = sums.tolist()
        loss, lowest = total / learnt, min((loss for _, loss in self.points), default=math.inf)
        if not math.isfinite(loss):
            raise TrainingFailed(f"step {step}: the validation loss is {loss}. The last good checkpoint is kept.")
        verdict = "the lowest so far" if loss < lowest else f"not below {lowest:.4f} of step {self.best_step}"
        self._say(f"step {step} · validation loss {loss:.4f}, {verdict}")
        self.points.append((step, loss))
        if loss < lowest:
            self.best = {name: p.detach().cpu().clone() for name, p in _trained(model).items()}
        return loss

    @property
    def best_step(self) -> int:
        """The first step with the lowest loss; 0 before any validation."""
        return min(self.points, key=lambda point: point[1], default=(0, 0.0))[0]

    @property
    def spent(self) -> bool:
        """Whether the loss has not fallen for `patience` validations."""
        since = sum(step > self.best_step for step, _ in self.points)
        return 0 < self.patience <= since

    def use_best(self, model: torch.nn.Module) -> None:
        """Give the model the weights with the lowest loss."""
        with torch.no_grad():
            for name, parameter in _trained(model).items():
                parameter.copy_(self.best[name])
        refresh(model)
        lowest = min(loss for _, loss in self.points)
        self._say(f"keeping the adapter of step {self.best_step} of {self.points[-1][0]}, validation loss {lowest:.4f}")

    def save(self, folder: Path) -> None:
        """Write the best weights into a checkpoint; the losses are in its step log."""
        if self.best:
            save_file(self.best, folder / _BEST)

    def restore(self, folder: Path, rows: list[Step]) -> None:
        """Take over what a checkpoint and its step log know."""
        self.points = [(row.step, row.validation_loss) for row in rows if row.validation_loss is not None]
        self.best = load_file(folder / _BEST) if self.points else {}

    def totals(self) -> dict[str, float | int]:
        """What training.json says."""
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
