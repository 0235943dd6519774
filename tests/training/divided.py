"""The launcher with processes that say how much of the packed base they hold; the second may run out of memory once.

The job's `short_in_step` names the step in which it does, in its first attempt.
"""

import gc
import os
from pathlib import Path
from typing import Any

from tasks.process.child import main
from tasks.training.distributed import launch
from tests.training.messages import refuse_objects

work = launch.process


def process(job: dict[str, Any]) -> None:
    import torch

    from tasks.training import trainer

    refuse_objects()
    rank, steps = int(os.environ["RANK"]), job.get("short_in_step")
    run, accumulate, flatten = trainer.PackedTrainer.run, trainer.PackedTrainer._accumulate, trainer.flatten
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

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal now
        now = self.state.global_step + 1
        return accumulate(self, *arguments)

    def limited(*arguments: Any) -> Any:
        if rank == 1 and now == steps and not Path(job["checkpoints"], "tokens_at_once").exists():
            raise torch.OutOfMemoryError("no room")
        return flatten(*arguments)

    trainer.PackedTrainer.run, trainer.PackedTrainer._accumulate, trainer.flatten = measured, counted, limited
    work(job)


if __name__ == "__main__":
    launch.process = process
    main(launch.launch)
