"""The launcher with processes that say how much of the packed base they hold; the second may run out of memory once.

The job's `short_in_step` names the step in which it does, in its first attempt.
"""

import gc
import os
from pathlib import Path
from typing import Any

from tasks.process.child import main
from tasks.training.distributed import launch
from tasks.training.schema import TrainingJob
from tests.training.messages import refuse_objects

work = launch.process


class Job(TrainingJob):
    short_in_step: int = 0


def process(job: Job) -> None:
    import torch

    from tasks.training import step, trl_adapter

    refuse_objects()
    rank, short_in = int(os.environ["RANK"]), job.short_in_step
    run, compute, flatten = trl_adapter.PackedTrainer.run, step.PackedStep.compute, step.flatten
    packed = (torch.uint8, torch.bfloat16)  # as it is loaded, and as it is divided
    now = 0

    def measured(self: Any) -> None:
        run(self)
        held = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if type(t) in (torch.Tensor, torch.nn.Parameter) and t.dtype in packed
        }
        random_state = torch.get_rng_state().nbytes
        total = sum(n for n in held.values() if n != random_state)
        # in one piece and on a line of its own, whatever the other process is printing
        os.write(1, f"\nprocess {rank} holds {total} packed bytes\n".encode())

    def counted(self: Any, rows: Any, number: int, rate: float) -> Any:
        nonlocal now
        now = number
        return compute(self, rows, number, rate)

    def limited(*arguments: Any) -> Any:
        if rank == 1 and now == short_in and not Path(job.checkpoints, "tokens_at_once").exists():
            raise torch.OutOfMemoryError("no room")
        return flatten(*arguments)

    trl_adapter.PackedTrainer.run, step.PackedStep.compute, step.flatten = measured, counted, limited
    work(job)


if __name__ == "__main__":
    launch.process = process
    main(launch.launch, Job)
