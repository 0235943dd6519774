"""What a training run says about itself: a line now and then, a row per step, totals at the end."""

import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("learnt_tokens", pa.int64(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("learning_rate", pa.float64(), nullable=False),
        pa.field("grad_norm", pa.float64(), nullable=False),
        pa.field("tokens_per_second", pa.float64(), nullable=False),
        pa.field("memory_bytes", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("validation_loss", pa.float64()),  # after this step, where it was measured
    ]
)
_LINE_SECONDS = 5.0


@dataclass(frozen=True)
class Step:
    """One optimizer step: `tokens` in it without padding, mean loss over its learnt tokens, norm before clipping."""

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
    """The rows of a run so far; a resumed run starts with those of its checkpoint."""

    def __init__(self, steps: int, say: Callable[[str], None] = print) -> None:
        self.rows: list[Step] = []
        self.resumed_from = self._restored = 0
        self._steps, self._say = steps, say
        self._said = time.monotonic()

    def add(
        self, step: int, tokens: int, learnt: int, loss: float, learning_rate: float, grad_norm: float, seconds: float
    ) -> None:
        """Record a finished step that lasted `seconds`, and say so when the last line is old enough."""
        now = time.monotonic()
        row = Step(
            step, tokens, learnt, loss, learning_rate, grad_norm, tokens / max(seconds, 1e-9), peak_memory(), seconds
        )
        self.rows.append(row)
        if now - self._said >= _LINE_SECONDS or step == self._steps:
            self._said = now
            self._say(self._line(row))

    def validated(self, loss: float) -> None:
        """Note the validation loss after the last finished step."""
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
        """Write the rows as Parquet."""
        pq.write_table(pa.Table.from_pylist([asdict(row) for row in self.rows], schema=SCHEMA), file)

    def restore(self, file: Path, step: int) -> None:
        """Take over the rows that a checkpoint of `step` saved."""
        self.rows = [Step(**row) for row in pq.read_table(file).to_pylist()]
        self.resumed_from, self._restored = step, len(self.rows)

    def tokens_here(self) -> int:
        """Tokens of the steps since this start."""
        return sum(row.tokens for row in self.rows[self._restored :])

    def totals(self) -> dict[str, float | int]:
        """Sums over all steps; speed leaves out the first step of every start, which also warms up."""
        tokens, seconds = sum(r.tokens for r in self.rows), sum(r.seconds for r in self.rows)
        warm = [r for r in self.rows if r.step not in (1, self.resumed_from + 1)] or self.rows
        return {
            "steps": len(self.rows),
            "tokens": tokens,
            "learnt_tokens": sum(r.learnt_tokens for r in self.rows),
            "seconds": seconds,
            "tokens_per_second": sum(r.tokens for r in warm) / sum(r.seconds for r in warm),
            "peak_memory_bytes": max(r.memory_bytes for r in self.rows),
            "loss_first": self.rows[0].loss,
            "loss_last": self.rows[-1].loss,
            "resumed_from_step": self.resumed_from,
        }


def peak_memory() -> int:
    """Most bytes in use so far: allocated on the GPU, or resident in this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_name() -> str:
    """The GPU's name, or the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else "CPU"
    return f"{name}, {torch.get_num_threads()} threads"


def write_totals(file: Path, totals: dict[str, float | int | str | None]) -> None:
    """`training.json`."""
    file.write_text(json.dumps(totals, indent=1) + "\n")
