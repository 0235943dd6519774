"""What the processes of one run share: decisions, and the sum of their gradients.

Nothing is exchanged during forward and backward passes. So a process that runs out of memory in the middle of its
micro-batches leaves nobody waiting in a collective: all meet after their last one, agree on how it went, and only then
add up their gradients, which are the adapter's and small.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_TIMEOUT = timedelta(minutes=30)
# what gloo says of a connection, in a RuntimeError; of wrong use it says "[enforce fail at ..."
_GLOO_CONNECTION = re.compile(r"\[\S*gloo/transport/")


class PeerLost(RuntimeError):
    """Another process of the run is gone."""


@contextlib.contextmanager
def meeting() -> Iterator[None]:
    """Say of a connection to another process that was lost that this process is gone.

    Raises:
        PeerLost: it was lost.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _GLOO_CONNECTION.match(str(error)):
            raise  # a fault of ours, or no memory
        raise PeerLost(f"another process of the run is gone ({str(error).split('. ')[0]})") from error


@contextlib.contextmanager
def together(place: str) -> Iterator[None]:
    """Meet the other processes that launchers have started for this run.

    Args:
        place: a file of this machine, or host:port of the first node's launcher.
    """
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with meeting():
        store: Any
        if place.startswith("/"):
            store = dist.FileStore(place, count)
        else:
            host, _, port = place.rpartition(":")
            store = dist.PrefixStore("training", dist.TCPStore(host.strip("[]"), int(port), is_master=False))
        store.set_timeout(_TIMEOUT)
        dist.init_process_group("nccl" if gpu else "gloo", timeout=_TIMEOUT, store=store, rank=rank, world_size=count)
    yield
    dist.destroy_process_group()  # not after a failure: the others may never come


class Peers:
    """The processes of this run: `count` of them, this one's number is `rank`. Alone, all is what this one says."""

    def __init__(self) -> None:
        together = dist.is_initialized()
        self.count, self.rank = (dist.get_world_size(), dist.get_rank()) if together else (1, 0)
        # of the hosts: an answer from the devices would wait for all the work that is queued there
        self._hosts: Any = dist.new_group(backend="gloo") if self.count > 1 else None

    def most(self, value: int) -> int:
        """The largest value of all processes, which must all ask."""
        if self.count == 1:
            return value
        number = torch.tensor(value)
        with meeting():
            dist.all_reduce(number, dist.ReduceOp.MAX, group=self._hosts)
        return int(number)

    def least(self, value: int) -> int:
        """The smallest value of all processes, which must all ask."""
        return -self.most(-value)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all processes, which must all ask."""
        if self.count > 1:
            with meeting():
                dist.all_reduce(values)
        return values

    @torch.no_grad()
    def start_equal(self, parameters: Sequence[torch.Tensor]) -> None:
        """Give all processes the first one's weights."""
        if self.count > 1:
            with meeting():
                for parameter in parameters:
                    dist.broadcast(parameter, src=0)

    def add_up(self, parameters: Sequence[torch.Tensor], loss: torch.Tensor) -> torch.Tensor:
        """Make every parameter's gradient the sum over all processes, in one exchange; the sum of the losses.

        A process that had no rows in this step has no gradients yet, which counts as zero.
        """
        if self.count == 1:
            return loss
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(grad.flatten() for grad in grads), loss.reshape(1)])
        with meeting():
            dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat[:-1].split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        return flat[-1]
