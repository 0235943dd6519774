"""One optimizer step over packed micro-batches. It recovers from running out of memory and can be interrupted.

A step has `batch_size` rows over all processes. They are divided among the processes and packed into micro-batches of
at most `micro_batch_tokens` tokens. The losses are summed and divided by the number of target tokens in the whole step.
So the number of processes and `micro_batch_tokens` change speed and memory; they change the result only by rounding and
by the random numbers of dropout and NEFTune.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel

from tasks.model.collectives import Collectives, peer_errors
from tasks.model.device import Instant, random_state, set_random_state
from tasks.model.lora import refresh
from tasks.model.sharding import is_sharded
from tasks.training import checkpoints
from tasks.training.compute_plan import uncompiled_on_failure
from tasks.training.memory import end_attempt, halved_budget
from tasks.training.packing import Row, StepRows, divide, flatten, micro_batches
from tasks.training.step_metrics import PendingStep, StepLog
from tasks.training.validation import StopEarly, Validation

# outcome of a step in a process; all processes act on the largest
_DONE, _CHECKPOINT_DUE, _OUT_OF_MEMORY, _STOPPED = range(4)


class Interrupted(BaseException):
    """A stop was requested while a step was computed. Not an Exception, so that no library catches it."""


@dataclass(eq=False)
class PackedStep:
    """Computes the gradients of one step after the other.

    Args:
        model: a base with an adapter whose forward returns the summed loss of a micro-batch.
        folder: of the checkpoints.
        steps: of the whole run.
        backward: computes the gradients of a loss; float16 needs it scaled.
        scaled: whether `backward` scales.
    """

    model: PeftModel
    device: torch.device
    folder: Path
    steps: int
    validation: Validation | None
    collectives: Collectives
    log: Callable[[str], None]
    backward: Callable[[torch.Tensor], None]
    scaled: bool
    micro_batch_tokens: int = 0
    halvings: int = 0
    stop_requested: bool = False

    def __post_init__(self) -> None:
        self.sharded = is_sharded(self.model)
        self.metrics, self.schedule = StepLog(self.steps, self.log), checkpoints.Schedule()
        self.began = Instant(self.device)
        self._pending: PendingStep | None = None
        self._computing = False
        self._shares: list[list[Row]] = []  # rows of all processes that are computed now
        self._random_state = self._last_step_state = random_state()

    def trained(self) -> list[torch.nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def compute(self, rows: StepRows, step: int, learning_rate: float) -> torch.Tensor:
        """Compute the gradients of `step`; returns the mean loss over the target tokens of all processes' rows.

        Raises:
            Interrupted: a process was asked to stop.
            StopEarly: the validation loss has not fallen for too long.
            TrainingFailed: the step before was not finite, or its gradient zero.
            UserError: a single row does not fit on the device.
        """
        self.model.train()
        self.validate(step - 1)
        shares = divide(rows.rows, self.collectives.count)
        loss = self._fitting(lambda: self._accumulate(shares, rows.targets), f"step {step}")
        loss = self.collectives.sum_gradients(self.trained(), loss)
        self.finish_pending()
        self._pending = PendingStep(step, rows.tokens, rows.targets, learning_rate, loss)
        return loss

    def gradients_done(self, norm: torch.Tensor) -> None:
        """Start to read the step's loss and this gradient norm."""
        assert self._pending is not None
        self._pending.start_reading(norm, self.device)

    def finish_pending(self) -> None:
        """Read and log loss and gradient norm of the last step; raises TrainingFailed as `PendingStep.read` does.

        This is done one step late, when the next step's work is queued, so that the device does not wait; and before
        every checkpoint. A step lasts from the end of the previous gradients to the end of its own. A stop request
        waits meanwhile, so that no step is lost or logged twice.
        """
        computing, self._computing = self._computing, False
        last, self._pending = self._pending, None
        if last is not None and last.end is not None:
            loss, norm = last.read(self.scaled)
            seconds, self.began = last.end.since(self.began), last.end
            self.metrics.add(last, loss, norm, seconds)
        self._computing = computing
        if computing and self.stop_requested:
            raise Interrupted

    def validate(self, step: int) -> None:
        """Renew the adapter's compute-dtype copies and, if due, validate the weights after `step`.

        The time of a validation counts for no step. Raises StopEarly as `compute` does.
        """
        self._random_state = random_state()
        refresh(self.model)
        validation = self.validation
        if validation and validation.due(step):
            self.finish_pending()
            work = partial(validation.sums, self.model, self.micro_batches, self.collectives.count)
            sums = self._fitting(work, f"the validation after step {step}")
            self.metrics.add_validation(validation.add(step, self.collectives.sum(sums), self.model))
            self.began = Instant(self.device)
        if validation and validation.patience_exhausted:
            raise StopEarly

    def request_stop(self, *_: object) -> None:
        """Signal handler: interrupt the step that is computed, or stop before the next one."""
        self.stop_requested = True
        if self._computing:
            self._computing = False
            raise Interrupted

    def ended(self) -> None:
        """Save the random state after a step. A new epoch's data loader draws a random number before the next step."""
        self._last_step_state = random_state()

    def give_up(self) -> None:
        """After `Interrupted`: return to the end of the last step, and log that step."""
        self._computing = False
        self._undo_attempt()
        set_random_state(self._last_step_state)
        self.finish_pending()

    def micro_batches(self, shares: list[list[Row]]) -> Iterator[tuple[list[Row], float]]:
        """This process's micro-batches, each with the factor of its loss.

        Processes that share sharded weights gather them at the same time. So they compute the same number of
        micro-batches, and agree before each one whether to stop: at that point no process waits for another.
        """
        self._shares = shares
        for batch in micro_batches(shares, self.collectives.rank, self.micro_batch_tokens, in_step=self.sharded):
            if self.sharded and self.collectives.max(self.stop_requested):
                raise Interrupted
            yield batch

    def _fitting(self, work: Callable[[], torch.Tensor], where: str) -> torch.Tensor:
        """This process's result of `work`, repeated with fewer tokens at once while a process runs out of memory."""
        while True:
            result, tokens = self._attempt(work, where)
            if tokens == self.micro_batch_tokens:
                return result
            self._undo_attempt()
            torch.cuda.empty_cache()
            self.micro_batch_tokens = tokens
            self.halvings += 1
            self.log(f"out of memory in {where}: repeated with at most {tokens:,} tokens at once (same rows per step)")

    def _attempt(self, work: Callable[[], torch.Tensor], where: str) -> tuple[torch.Tensor, int]:
        """One attempt: this process's result, and the number of tokens at once with which all processes succeed."""
        result, outcome, tokens = torch.zeros((), device=self.device), _DONE, self.micro_batch_tokens
        try:
            try:
                self._computing = not self.sharded
                if self.stop_requested and self._computing:
                    raise Interrupted
                with peer_errors():  # FSDP gathers weights meanwhile
                    result = uncompiled_on_failure(work, self._undo_attempt, self.log)
                self._computing = False
                outcome = _CHECKPOINT_DUE if self.schedule.late() else _DONE
            except torch.OutOfMemoryError:
                self._computing = False
                outcome, tokens = _OUT_OF_MEMORY, halved_budget(self._shares, tokens)
                if self.sharded:
                    end_attempt(self.folder, tokens, f"process {self.collectives.rank}, {where}")
        except Interrupted:
            outcome = _STOPPED
        outcome = self.collectives.max(outcome)
        if outcome == _STOPPED:
            raise Interrupted
        self.schedule.due = outcome == _CHECKPOINT_DUE
        return result, self.collectives.min(tokens) if outcome == _OUT_OF_MEMORY else tokens

    def _accumulate(self, shares: list[list[Row]], targets: int) -> torch.Tensor:
        """Forward and backward over this process's micro-batches; `targets`: of the step in all processes."""
        total = torch.zeros((), device=self.device)
        for number, (group, factor) in enumerate(self.micro_batches(shares)):
            loss = self.model(**vars(flatten(group, self.device))) * (factor / max(targets, 1))
            self.backward(loss)
            total += loss.detach()
            if number == 0:
                self.finish_pending()  # of the previous step, now that the device has work queued
        return total

    def _undo_attempt(self) -> None:
        """Reset gradients and random state, so that a step can be computed again."""
        self.model.zero_grad(set_to_none=True)
        set_random_state(self._random_state)
