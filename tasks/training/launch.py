"""The training child for several processes on this machine: torch's elastic launcher starts the worker in each.

Data parallel: every process holds the whole quantized base and trains its share of each step's rows. Ended as one: when
a process dies the launcher ends the others, and the next attempt goes on from the last checkpoint.
"""

import os
import sys
from typing import Any

from tasks.child import PASSING_EXIT, STOPPED_EXIT, follow_parent, main
from tasks.errors import UserError
from tasks.quiet import silence


def launch(job: dict[str, Any]) -> None:
    """Run one job of `worker.train` in `processes` processes.

    Raises:
        UserError: configuration or data cannot be trained.
    """
    silence()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job["processes"],
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,  # another attempt is the flow's to make
        monitor_interval=0.2,
    )
    try:
        ends = elastic_launch(config, process)(job)
    except SignalException:
        sys.exit(STOPPED_EXIT)
    except ChildFailedError as error:
        first = error.get_first_failure()[1]
        if first.exitcode == STOPPED_EXIT:
            sys.exit(STOPPED_EXIT)
        if first.exitcode >= 0:
            raise
        print(f"process {first.local_rank} was ended by signal {-first.exitcode}")
        sys.exit(PASSING_EXIT)
    if mistakes := set(ends.values()) - {None}:
        raise UserError(mistakes.pop())


def process(job: dict[str, Any]) -> str | None:
    """One of the processes. What it returns reaches the launcher: nothing, or the sentence about a user's mistake.

    One that was stopped exits instead: a launcher that is ending itself takes no results, and a process that has one
    to hand over would wait for that until it is killed.
    """
    from tasks.training.worker import train

    follow_parent(os.getppid())
    try:
        train(job)
    except UserError as error:
        return str(error)
    return None


if __name__ == "__main__":
    main(launch)
