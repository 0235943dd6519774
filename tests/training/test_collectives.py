"""What an exchange between processes makes of errors."""

import pytest
import torch
import torch.distributed as dist

from tasks.model.collectives import Collectives, PeerLost

TRANSPORT = "[/__w/pytorch/third_party/gloo/gloo/transport/tcp/"
ENFORCED = "[enforce fail at /__w/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:456] op.preamble.length"


@pytest.fixture
def collectives(monkeypatch):
    """`collectives(error)`: two processes whose exchanges raise it."""

    def make(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(dist, "all_reduce", fail)
        collectives = Collectives()
        collectives.count = 2
        return collectives

    return make


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(TRANSPORT + "pair.cc:553] Connection closed by peer [127.0.0.1]:35719. This is typically caused"),
        RuntimeError(TRANSPORT + "unbound_buffer.cc:78] Timed out waiting 8000ms for recv operation to complete"),
        dist.DistBackendError("NCCL error: remote process exited or there was a network error"),
        dist.DistNetworkError("failed to recv, got 0 bytes"),
    ],
    ids=str,
)
def test_a_lost_connection_is_a_lost_process(collectives, error):
    with pytest.raises(PeerLost, match="another process of the run is gone"):
        collectives(error).max(1)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError(ENFORCED),
        torch.OutOfMemoryError("no room"),
        NotImplementedError("no such operator"),
    ],
    ids=str,
)
def test_any_other_error_stays_what_it_is(collectives, error):
    with pytest.raises(type(error)) as caught:
        collectives(error).sum(torch.zeros(2))
    assert caught.value is error
