"""Joins a training on several nodes that the flow on the first node starts. Runs on every other node.

    QLORA_FLOW_NODES=2 QLORA_FLOW_RENDEZVOUS=node0:29400 QLORA_FLOW_NODE=1 python -P -m tasks.training.distributed.join

It waits for a training, takes part in it with all GPUs, and waits for the next one, which may be another attempt. It
does not end by itself, because the first node may find every result in its cache and train nothing. The job that
started it must end it.
"""

import os
import socket
import sys
import time

from tasks.errors import UserError
from tasks.training.distributed.launch import start
from tasks.training.distributed.nodes import Nodes, NodesApart, gpus, nodes


def join(where: Nodes) -> None:
    """Join one training after another. Raises UserError on the first node, or the only one."""
    if where.number == 0:
        raise UserError("QLORA_FLOW_NODE is 0 or not set: the first node runs the flow, the others join with 1, 2, ...")
    while True:
        print(f"waiting for a training at {where.endpoint}")
        _until(True, where)
        try:
            over = "this attempt at training is over" if start(None, gpus() or 1, where) else "the training is finished"
        except (UserError, NodesApart) as error:
            over = f"this attempt at training is over: {error}"
        print(over)
        _until(False, where)  # so that this attempt is not joined again


def _until(listening: bool, where: Nodes) -> None:
    """Wait until the first node's launcher listens, or no longer does. Python waits, so that signals end it."""
    there = not listening
    while there != listening:
        time.sleep(0.5)
        try:
            socket.create_connection((where.host, where.port), timeout=5).close()
            there = True
        except OSError:
            there = False


if __name__ == "__main__":
    os.environ["PYTHONUNBUFFERED"] = "1"  # of its processes
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        join(nodes())
    except UserError as mistake:
        sys.exit(str(mistake))
