"""The machines that train one adapter together, as the job that starts them says it in the environment.

QLORA_FLOW_NODES        how many; 1 when it is not set
QLORA_FLOW_RENDEZVOUS   where they meet, host:port; the host is the machine that runs the flow
QLORA_FLOW_NODE         number of this machine: 0 (not set) runs the flow, the others run `tasks.training.join`
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UserError

_ENDPOINT = re.compile(r"[^\s:]+:[0-9]{1,5}|\[[0-9a-fA-F:]+\]:[0-9]{1,5}")


@dataclass(frozen=True)
class Nodes:
    """`count` machines, this one's `number`, and the `endpoint` where they meet ("" when there is one)."""

    count: int
    number: int
    endpoint: str


def nodes() -> Nodes:
    """What the environment says.

    Raises:
        UserError: a variable is missing or not what it should be.
    """
    count, number = _whole("QLORA_FLOW_NODES", 1), _whole("QLORA_FLOW_NODE", 0)
    endpoint = os.environ.get("QLORA_FLOW_RENDEZVOUS", "")
    if count <= 1:
        return Nodes(1, 0, "")
    if not _ENDPOINT.fullmatch(endpoint):
        raise UserError(f"QLORA_FLOW_RENDEZVOUS is {endpoint!r}: {count} nodes need host:port, like node0:29400")
    if number >= count:
        raise UserError(f"QLORA_FLOW_NODE is {number}: the numbers of {count} nodes are 0 to {count - 1}")
    return Nodes(count, number, endpoint)


def _whole(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"{name} is {text!r}: it takes a whole number")
    return int(text)


def gpus() -> int:
    """NVIDIA GPUs of this machine, or those CUDA_VISIBLE_DEVICES leaves, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
