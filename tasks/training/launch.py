"""The training child for several processes on this machine: torch's elastic launcher starts the worker in each.

Data parallel: every process holds the whole quantized base and trains its share of each step's rows. Ended as one: when
a process dies the launcher ends the others, and the next attempt goes on from the last checkpoint.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Any

from tasks.child import PASSING_EXIT, STOPPED_EXIT, USER_ERROR_EXIT, follow_parent, main
from tasks.errors import UserError
from tasks.quiet import silence

_MISTAKE = "mistake"  # a file among the checkpoints


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
    mistake = Path(job["checkpoints"], _MISTAKE)
    for library in ("torch.distributed.elastic", "torch.multiprocessing"):  # how it ended is told here
        logging.getLogger(library).setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, process)(job)
    except SignalException:
        sys.exit(STOPPED_EXIT)
    except ChildFailedError as error:  # one ended first, and others perhaps because it was gone
        ends = {failure.exitcode: failure for failure in error.failures.values()}
        if USER_ERROR_EXIT in ends:
            raise UserError(mistake.read_text()) from None
        if exits := ends.keys() & {STOPPED_EXIT, PASSING_EXIT}:
            sys.exit(max(exits))
        if min(ends) >= 0:
            raise
        print(f"process {ends[min(ends)].local_rank} was ended by signal {-min(ends)}")
        sys.exit(PASSING_EXIT)
    finally:
        mistake.unlink(missing_ok=True)


def process(job: dict[str, Any]) -> None:
    """One of the processes. It leaves a user's mistake in a file, and ends at once: others may wait for it."""
    from tasks.training.peers import together
    from tasks.training.worker import train

    follow_parent(os.getppid())
    try:
        with together():
            train(job)
    except UserError as error:
        Path(job["checkpoints"], _MISTAKE).write_text(str(error))
        os._exit(USER_ERROR_EXIT)


if __name__ == "__main__":
    main(launch)
