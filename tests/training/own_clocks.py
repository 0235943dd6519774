"""The launcher with processes whose clocks differ: one runs twice as fast, and checkpoints are half a second apart."""

import os
import time

from tasks.process.child import main
from tasks.training.distributed import launch
from tasks.training.schema import TrainingJob
from tests.training.messages import refuse_objects

work = launch.process


def process(job: TrainingJob) -> None:
    from tasks.training import checkpoints

    refuse_objects()
    rate = 1 + int(os.environ["RANK"])
    checkpoints.MINUTES, checkpoints.now = 0.5 / 60, lambda: rate * time.monotonic()
    work(job)


if __name__ == "__main__":
    launch.process = process
    main(launch.launch, TrainingJob)
