"""The nodes (machines) that train one adapter together, from environment variables.

QLORA_FLOW_NODES        number of nodes [default 1]
QLORA_FLOW_RENDEZVOUS   host:port where they meet; the host runs the flow. No other machine may reach them over the
                        network (docs/gpus.md)
QLORA_FLOW_NODE         number of this node [default 0]; node 0 runs the flow, the others run `join.py`
"""

import json
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import UserError
from tasks.process.quiet import silence
from tasks.training.identity import version

if TYPE_CHECKING:  # it imports pyarrow
    from tasks.training.schema import TrainingJob

_JOIN_SECONDS = 600  # that nodes wait for each other
_NUMBERS = {"QLORA_FLOW_NODES": "1", "QLORA_FLOW_NODE": "0"}  # their defaults
_ENDPOINT = re.compile(r"(?:[^\s:]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})")


class NodesApart(RuntimeError):
    """The nodes did not meet."""


@dataclass(frozen=True)
class Nodes:
    """`count` machines, this one's `number`, and the `endpoint` where they meet ("" when there is one)."""

    count: int
    number: int
    endpoint: str

    @property
    def host(self) -> str:
        return self.endpoint.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])


def nodes() -> Nodes:
    """Read the environment variables. Raises UserError if one is missing or wrong."""
    numbers = {name: os.environ.get(name, default) for name, default in _NUMBERS.items()}
    for name, text in numbers.items():
        if not text.isdecimal():
            raise UserError(f"{name} is {text!r}: it takes a whole number")
    count, number = map(int, numbers.values())
    endpoint = os.environ.get("QLORA_FLOW_RENDEZVOUS", "")
    if count <= 1:
        return Nodes(1, 0, "")
    found = _ENDPOINT.fullmatch(endpoint)
    if not found or int(found[1]) not in range(1, 1 << 16):
        raise UserError(f"QLORA_FLOW_RENDEZVOUS is {endpoint!r}: {count} nodes need host:port, like node0:29400")
    if number >= count:
        raise UserError(f"QLORA_FLOW_NODE is {number}: the numbers of {count} nodes are 0 to {count - 1}")
    return Nodes(count, number, endpoint)


def meet(job: "TrainingJob | None", processes: int, where: Nodes) -> "tuple[Any, TrainingJob, list[int]]":
    """Exchange, as JSON, the job and the numbers of processes before the nodes start them.

    Args:
        job: the first node's; None on the others.
    Returns:
        the store at which they met, the first node's job, and the number of processes of each node.
    Raises:
        UserError: a node has another version of the code, or does not see a file.
        NodesApart: a node did not come, or the first one is gone.
    """
    silence()
    from torch.distributed import DistError, TCPStore

    from tasks.training.schema import TrainingJob

    try:
        store = TCPStore(where.host, where.port, is_master=where.number == 0, wait_for_workers=False)
        if job is not None:
            store.set("job", json.dumps({"job": job.model_dump(mode="json"), "version": version()}))
        first = _read(store, "job")
        own = {"processes": processes, "trouble": _trouble(first["job"], first["version"])}
        store.set(f"node {where.number}", json.dumps(own))
        every = [_read(store, f"node {number}") for number in range(where.count)]
    except DistError as error:
        raise NodesApart(f"the {where.count} nodes did not meet: {error}") from error
    if troubles := [node["trouble"] for node in every if node["trouble"]]:
        raise UserError(troubles[0])
    return store, TrainingJob.model_validate(first["job"]), [node["processes"] for node in every]


def _read(store: Any, key: str) -> Any:
    """Wait for the value that a node sets under `key`. Python waits, so that signals end it."""
    patience = time.monotonic() + _JOIN_SECONDS
    while not store.check([key]):
        if time.monotonic() > patience:
            raise NodesApart(f"the nodes did not meet within {_JOIN_SECONDS // 60} minutes: {key} is missing")
        time.sleep(0.2)
    return json.loads(store.get(key))


def _trouble(job: dict[str, Any], code: str) -> str:
    """Why this node cannot train the job, or an empty string. `code` is the version of the first node."""
    if code != version():
        return f"{socket.gethostname()} has another version of qlora-flow or its libraries than the first node"
    for place in (job[name] for name in ("tokens", "model", "checkpoints", "start")):
        if not Path(place).exists():
            return (
                f"{socket.gethostname()} does not see {place}: all nodes need the store, and the models of the Hub "
                "(HF_HOME), on a file system that they share"
            )
    return ""


def gpus() -> int:
    """NVIDIA GPUs of this machine, or those CUDA_VISIBLE_DEVICES leaves, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
