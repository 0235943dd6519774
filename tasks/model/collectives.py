"""Collectives over the processes of one run: agreement on numbers, and the sum of their gradients.

Nothing is exchanged during forward and backward passes. So if a process runs out of memory within its micro-batches,
no other process waits in a collective: all processes meet after their last micro-batch, agree on the outcome, and only
then sum the gradients, which are small because only the adapter has them.
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
# gloo reports a lost connection as a RuntimeError that begins like this; wrong use begins with "[enforce fail at ..."
_GLOO_CONNECTION = re.compile(r"\[\S*gloo/transport/")


class PeerLost(RuntimeError):
    """Another process of the run is gone."""


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """Raise `PeerLost` for a lost connection to another process; other errors stay as they are."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _GLOO_CONNECTION.match(str(error)):
            raise
        raise PeerLost(f"another process of the run is gone ({str(error).split('. ')[0]})") from error


@contextlib.contextmanager
def process_group(rendezvous: str) -> Iterator[None]:
    """Join the process group of this run; rank and size are in the environment.

    `rendezvous` is a file of this machine, or host:port of the first node's launcher.
    """
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store: Any
    with peer_errors():
        if rendezvous.startswith("/"):
            store = dist.FileStore(rendezvous, count)
        else:
            host, _, port = rendezvous.rpartition(":")
            store = dist.PrefixStore("training", dist.TCPStore(host.strip("[]"), int(port), is_master=False))
        store.set_timeout(_TIMEOUT)
        dist.init_process_group("nccl" if gpu else "gloo", timeout=_TIMEOUT, store=store, rank=rank, world_size=count)
    yield
    dist.destroy_process_group()  # not after a failure: it would wait for processes that are gone


class Collectives:
    """Collectives over the `count` processes of this run, of which this one is `rank`. All processes must call them.

    With one process each returns its argument.
    """

    def __init__(self) -> None:
        distributed = dist.is_initialized()
        self.count, self.rank = (dist.get_world_size(), dist.get_rank()) if distributed else (1, 0)
        # between hosts: a collective on the devices would wait for all work that is queued there
        self._hosts: Any = dist.new_group(backend="gloo") if self.count > 1 else None

    def max(self, value: int) -> int:
        """The largest value of all processes."""
        if self.count == 1:
            return value
        number = torch.tensor(value)
        with peer_errors():
            dist.all_reduce(number, dist.ReduceOp.MAX, group=self._hosts)
        return int(number)

    def min(self, value: int) -> int:
        """The smallest value of all processes."""
        return -self.max(-value)

    def barrier(self) -> None:
        self.max(0)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all processes."""
        if self.count > 1:
            with peer_errors():
                dist.all_reduce(values)
        return values

    @torch.no_grad()
    def broadcast(self, parameters: Sequence[torch.Tensor]) -> None:
        """Copy the first process's weights to all processes."""
        if self.count > 1:
            with peer_errors():
                for parameter in parameters:
                    dist.broadcast(parameter, src=0)

    def sum_gradients(self, parameters: Sequence[torch.Tensor], loss: torch.Tensor) -> torch.Tensor:
        """Replace every gradient by its sum over all processes, in one exchange; returns the sum of the losses.

        A process that had no rows in this step has no gradients yet; they count as zero.
        """
        if self.count == 1:
            return loss
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.sum(torch.cat([*(grad.flatten() for grad in grads), loss.reshape(1)]))
        for parameter, part in zip(parameters, flat[:-1].split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter)
        return flat[-1]
