"""Which failures are tried again."""

import errno
import http.client
import ssl
from types import SimpleNamespace

import aiohttp
import httpx
import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
import safetensors.numpy
import torch
import urllib3
from fsspec.exceptions import FSTimeoutError
from huggingface_hub.errors import OfflineModeIsEnabled

from tasks.errors import UserError
from tasks.process.failures import ChildFailed, disk_trouble, is_transient
from tests.faults.bench import may_mount, mount, unmount


class HubError(Exception):
    def __init__(self, status: int) -> None:
        self.response = SimpleNamespace(status_code=status)


class ConnectError(Exception):
    """Called like httpx's, and none of its."""


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (HubError(429), True),
        (HubError(503), True),
        (HubError(404), False),
        (HubError(401), False),
        (httpx.ConnectError("no route"), True),
        (httpx.WriteTimeout("slow"), True),
        (httpx.PoolTimeout("slow"), True),
        (httpx.WriteError("reset"), True),
        (httpx.ProxyError("busy"), True),
        (httpx.RemoteProtocolError("half an answer"), True),
        (httpx.UnsupportedProtocol("ftp"), False),
        (httpx.LocalProtocolError("illegal header"), False),
        (httpx2.ReadTimeout("slow"), True),
        (httpx2.ProxyError("busy"), True),
        (requests.exceptions.ChunkedEncodingError("half an answer"), True),
        (requests.exceptions.ConnectTimeout("slow"), True),
        (requests.exceptions.ProxyError("busy"), True),
        (requests.exceptions.MissingSchema("no http://"), False),
        (urllib3.exceptions.ProtocolError("half an answer"), True),
        (urllib3.exceptions.NewConnectionError(None, "no route"), True),
        (urllib3.exceptions.LocationParseError("a b"), False),
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ClientPayloadError("half an answer"), True),
        (aiohttp.ClientResponseError(None, (), status=503), True),
        (aiohttp.ClientResponseError(None, (), status=410), False),
        (aiohttp.InvalidURL("a b"), False),
        (http.client.IncompleteRead(b"half"), True),
        (http.client.RemoteDisconnected("gone"), True),
        (FSTimeoutError(), True),
        (ConnectionResetError("gone"), True),
        (BrokenPipeError(errno.EPIPE, "closed"), False),
        (OfflineModeIsEnabled("as it was told"), False),
        (ConnectError("of another library"), False),
        (caused(httpx.ConnectError("certificate"), ssl.SSLCertVerificationError("self-signed")), False),
        (OSError(errno.EBUSY, "busy"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (TimeoutError("a stage ran longer than it may"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (ChildFailed("killed", transient=True), True),
        (ChildFailed("broken", transient=False), False),
        (UserError("wrong"), False),
        (ValueError("wrong"), False),
        (caused(RuntimeError("wrapped"), HubError(503)), True),
        (caused(UserError("wrapped"), HubError(503)), False),
    ],
    ids=repr,
)
def test_transient_failures_are_retried(error: Exception, again: bool) -> None:
    assert is_transient(error) is again


WRITERS = {
    "Python": lambda file: file.write_bytes(bytes(200_000)),
    "Arrow": lambda file: pq.write_table(pa.table({"a": list(range(100_000))}), file, compression="none"),
    "safetensors": lambda file: safetensors.numpy.save_file({"a": np.zeros(100_000)}, file),
    "torch": lambda file: torch.save({"a": torch.zeros(100_000)}, file),
}


@pytest.mark.skipif(not may_mount(), reason="this user may not make a small disk")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_whoever_writes(tmp_path, writer):
    mount(tmp_path, 64)
    try:
        with pytest.raises(Exception) as failure:
            WRITERS[writer](tmp_path / "file")
    finally:
        unmount(tmp_path)
    assert disk_trouble(failure.value).startswith("A disk is full (")
    assert not is_transient(failure.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_file_of_another_user_is_named(number):
    assert disk_trouble(OSError(number, "No", "/there")).startswith("/there cannot be used (No): ")


def test_other_errors_of_a_disk_are_not_called_a_full_one():
    assert disk_trouble(OSError(errno.EIO, "Input/output error")) == ""
    assert disk_trouble(RuntimeError("PytorchStreamReader failed reading zip archive")) == ""
