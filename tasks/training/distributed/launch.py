"""The launcher: a training child that starts several worker processes, and ends all if one fails.

Training is data parallel: every process trains its share of each step's rows. After a failure the next attempt
continues from the last checkpoint. On one machine the processes meet through a file of this user and connect over
loopback only. On several nodes each has a launcher: the first node's is the flow's child, the others run `join.py`.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tasks.errors import UserError
from tasks.process.child import STOPPED_EXIT, TRANSIENT_EXIT, USER_ERROR_EXIT, follow_parent, main
from tasks.process.quiet import silence
from tasks.training.distributed.nodes import Nodes, NodesApart, meet, nodes
from tasks.training.schema import TrainingJob

_MISTAKE = "mistake"  # a file among the checkpoints
_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}
_GRACE_SECONDS = 30.0  # to save a checkpoint
_FIRST_FAILURE_SECONDS = 3.0  # until the launcher has seen the process that failed first


def launch(job: TrainingJob) -> None:
    """Run one job in `job.processes` processes of this machine, and in those of the other nodes."""
    where, mistake = nodes(), job.checkpoints / _MISTAKE
    mistake.unlink(missing_ok=True)
    if where.count > 1:
        print(f"waiting for {where.count - 1} more nodes at {where.endpoint}")
    try:
        ends = start(job, job.processes, where)
        if ends and mistake.exists():
            raise UserError(mistake.read_text())
    except NodesApart as error:
        print(error)
        sys.exit(TRANSIENT_EXIT)
    finally:
        mistake.unlink(missing_ok=True)
    for number, code in ends.items():
        if code < 0:
            print(f"process {number} was ended by signal {-code}")
            sys.exit(TRANSIENT_EXIT)
    if ends:
        sys.exit(max(ends.values()))


def start(job: TrainingJob | None, processes: int, where: Nodes) -> dict[int, int]:
    """Run `process` in this many processes of this machine until all are done or one fails, which ends the others.

    Args:
        job: the first node's; None on the others.
    Returns:
        number and exit code of each process that failed first.
    Raises:
        UserError: a node has another version of the code, or does not see a file.
        NodesApart: the nodes did not meet.
        SystemExit: this process was asked to stop, and has stopped the others.
    """
    with contextlib.ExitStack() as stack:
        if where.count == 1:
            assert job is not None
            # among the checkpoints, which are removed after training, so that a kill leaves nothing behind
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix=".rendezvous-", dir=job.checkpoints))
            rendezvous, sizes, network = str(Path(folder, "store")), [processes], _LOOPBACK
        else:
            # the first node must keep its store while the others use it
            _store, job, sizes = meet(job, processes, where)
            rendezvous, network = where.endpoint, {"MASTER_ADDR": where.host}
        common = network | {"WORLD_SIZE": str(sum(sizes)), "LOCAL_WORLD_SIZE": str(processes)}
        if processes > 1:
            common["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
        first, told = sum(sizes[: where.number]), job.model_copy(update={"rendezvous": rendezvous})
        children = []
        for number in range(processes):
            ranks = {"RANK": str(first + number), "LOCAL_RANK": str(number)}
            arguments = (process, common | ranks, os.getpid(), told)
            children.append(multiprocessing.get_context("spawn").Process(target=_begin, args=arguments))
        return _run(children)


def _run(children: list[Any]) -> dict[int, int]:
    """Start all and wait; see `start`."""
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        for child in children:
            if child.pid:
                child.terminate()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for child in children:
            child.start()
        while True:
            running = [child.sentinel for child in children if child.exitcode is None]
            ends = {number: child.exitcode for number, child in enumerate(children) if child.exitcode}
            if ends or not running:
                break
            connection.wait(running)
        patience = time.monotonic() + _GRACE_SECONDS
        for child in children:
            child.terminate()
        for child in children:
            child.join(max(0.0, patience - time.monotonic()))
    finally:
        for child in children:
            if child.pid:
                child.kill()
                child.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    if stopped and ends:
        sys.exit(STOPPED_EXIT)
    return ends


def _begin(work: Any, environment: dict[str, str], launcher: int, job: TrainingJob) -> None:
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal: the launcher sends SIGTERM instead
    follow_parent(launcher)
    work(job)


def process(job: TrainingJob) -> None:
    """Entry point of a worker process. On errors it exits without cleanup, which would wait for other processes."""
    silence()
    from tasks.model.collectives import PeerLost, process_group
    from tasks.training.memory import ShardedOutOfMemory
    from tasks.training.worker import train

    try:
        with process_group(job.rendezvous):
            train(job)
    except UserError as error:
        (job.checkpoints / _MISTAKE).write_text(str(error))
        os._exit(USER_ERROR_EXIT)
    except ShardedOutOfMemory as error:
        print(error, flush=True)
        os._exit(TRANSIENT_EXIT)
    except PeerLost as error:
        time.sleep(_FIRST_FAILURE_SECONDS)
        print(error, flush=True)
        os._exit(TRANSIENT_EXIT)


if __name__ == "__main__":
    main(launch, TrainingJob)
