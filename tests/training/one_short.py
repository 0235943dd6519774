"""The launcher with a second process that runs out of memory once, in the middle of step 3's micro-batches."""

import os
from typing import Any

from tasks.process.child import main
from tasks.training.distributed import launch
from tasks.training.schema import TrainingJob

work = launch.process
MICRO_BATCHES = 2  # of a step in each process


def process(job: TrainingJob) -> None:
    import torch

    from tasks.training import step

    rank = int(os.environ["RANK"])
    flatten, attempt = step.flatten, step.PackedStep._attempt
    batches = 0

    def limited(*arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        if rank == 1 and batches == 3 * MICRO_BATCHES:
            raise torch.OutOfMemoryError("no room")
        return flatten(*arguments)

    def said(self: Any, *arguments: Any) -> Any:
        result, tokens = attempt(self, *arguments)
        if tokens != self.micro_batch_tokens:
            # in one piece and on a line of its own, whatever the other process is printing
            os.write(1, f"\nprocess {rank}: {tokens} tokens at once\n".encode())
        return result, tokens

    step.flatten, step.PackedStep._attempt = limited, said
    work(job)


if __name__ == "__main__":
    launch.process = process
    main(launch.launch, TrainingJob)
