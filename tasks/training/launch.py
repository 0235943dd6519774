"""The training child for several processes: torch's elastic launcher starts the worker in each.

Data parallel: every process trains its share of each step's rows. Ended as one: when a process dies the launcher ends
the others, and the next attempt goes on from the last checkpoint. On several nodes each has a launcher: the first one
is the flow's child and hands its job to the others (`join.py`).
"""

import logging
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from tasks.child import PASSING_EXIT, STOPPED_EXIT, USER_ERROR_EXIT, follow_parent, main
from tasks.errors import UserError
from tasks.quiet import silence
from tasks.training.identity import version
from tasks.training.nodes import Nodes, nodes

_MISTAKE = "mistake"  # a file among the checkpoints
_JOIN_SECONDS = 600  # that nodes wait for each other


def launch(job: dict[str, Any]) -> None:
    """Run one job of `worker.train` in `processes` processes, and in those of the other nodes.

    Raises:
        UserError: configuration, data or nodes cannot be trained with.
    """
    silence()
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    where, mistake = nodes(), Path(job["checkpoints"], _MISTAKE)
    if where.count > 1:
        print(f"waiting for {where.count - 1} more nodes at {where.endpoint}")
    try:
        start(job | {"version": version()}, job["processes"], where)
    except SignalException:
        sys.exit(STOPPED_EXIT)
    except DistError as error:
        print(f"the {where.count} nodes did not meet: {error}")
        sys.exit(PASSING_EXIT)
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


def start(job: dict[str, Any] | None, processes: int, where: Nodes) -> None:
    """Run `process` in so many processes of this machine, until all of them are done.

    Args:
        job: the first node's; None on the others.
    Raises:
        ChildFailedError, DistError, SignalException: torch's, about a process, another node, and this one.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for library in ("torch.distributed.elastic", "torch.multiprocessing"):  # the callers tell how it ended
        logging.getLogger(library).setLevel(logging.CRITICAL)
    several = where.count > 1
    with tempfile.TemporaryDirectory() as logs:  # torch's own would stay
        config = LaunchConfig(
            min_nodes=where.count,
            max_nodes=where.count,
            nproc_per_node=processes,
            run_id="qlora-flow",
            rdzv_backend="static" if several else "c10d",
            rdzv_endpoint=where.endpoint if several else "localhost:0",
            rdzv_configs={"rank": where.number, "timeout": _JOIN_SECONDS} if several else {},
            max_restarts=0,  # another attempt is the flow's to make
            monitor_interval=0.2,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        elastic_launch(config, process)(job)


def process(job: dict[str, Any] | None) -> None:
    """One of the processes. It leaves a user's mistake in a file, and ends at once: others may wait for it."""
    from tasks.training.peers import together
    from tasks.training.worker import train

    follow_parent(os.getppid())
    try:
        with together():
            job = _of_the_first(job)
            train(job)
    except UserError as error:
        if job is not None:
            Path(job["checkpoints"], _MISTAKE).write_text(str(error))
        os._exit(USER_ERROR_EXIT)


def _of_the_first(job: dict[str, Any] | None) -> dict[str, Any]:
    """The first process's job, once every process can do it.

    Raises:
        UserError: a node has other code, or does not see a file.
    """
    import torch.distributed as dist

    box: list[Any] = [job]
    dist.broadcast_object_list(box, src=0)
    troubles: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(troubles, _trouble(box[0]))
    if found := [trouble for trouble in troubles if trouble]:
        raise UserError(found[0])
    return box[0]


def _trouble(job: dict[str, Any]) -> str:
    if job["version"] != version():
        return f"{socket.gethostname()} has another version of qlora-flow or its libraries than the first node"
    if unseen := [job[name] for name in ("tokens", "model", "checkpoints") if not Path(job[name]).exists()]:
        return (
            f"{socket.gethostname()} does not see {unseen[0]}: all nodes need the store, and the models of the Hub "
            "(HF_HOME), on a file system that they share"
        )
    return ""


if __name__ == "__main__":
    main(launch)
