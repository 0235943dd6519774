"""Which failures are transient. These are retried; all others end the run."""

import errno
import socket
import ssl
from collections.abc import Iterator

from tasks.errors import UserError

TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}
TRANSIENT_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    socket.EAI_AGAIN,  # the name server does not answer
}
_NETWORK_ERRORS = {
    "builtins": {"ConnectionError"},
    "http": {"IncompleteRead"},
    **dict.fromkeys(("httpx", "httpx2"), ("TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError")),
    "requests": {"ConnectionError", "Timeout", "ChunkedEncodingError"},
    "urllib3": {"ProtocolError", "TimeoutError", "MaxRetryError"},
    "aiohttp": {"ClientConnectionError", "ClientPayloadError"},
    "fsspec": {"FSTimeoutError"},
    "botocore": {"ConnectionError", "HTTPClientError"},
    "google": {"TransportError"},
    "azure": {"ServiceRequestError", "ServiceResponseError"},
}
"""Package → names of the base classes of its network errors. By name, so that none of the packages is imported."""
_FULL_DISK = ("No space left on device", "PytorchStreamWriter failed", ". unexpected pos ")
"""Messages of safetensors and torch about a full disk, in errors that are not an OSError."""
_NO_NETWORK_ERRORS = {"BrokenPipeError", "OfflineModeIsEnabled"}
"""ConnectionErrors that are not transient: standard output is closed; huggingface_hub is set to offline."""


class ChildFailed(RuntimeError):
    """The child failed, and not by a user's mistake. The message holds its last lines.

    Args:
        transient: it was ended from outside or hung, so that another attempt can continue from its checkpoints.
    """

    def __init__(self, message: str, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient


def is_transient(error: BaseException) -> bool:
    """Whether another attempt can succeed without any change: network, busy disk, killed child."""
    chain = list(causes(error))
    if any(isinstance(e, UserError | ssl.SSLCertVerificationError) for e in chain):
        return False
    return any(_is_transient(e) for e in chain)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and the chain of errors that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def disk_trouble(error: BaseException) -> str:
    """One sentence when a disk is full, whoever reports it, or a file is not this user's; else empty."""
    for e in causes(error):
        if isinstance(e, OSError) and e.filename and e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{e.filename} cannot be used ({e.strerror}): give this user access, or name another place."
        known = isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT)
        if known or any(words in str(e) for words in _FULL_DISK):
            detail = " ".join(str(e).split())[:200]
            return f"A disk is full ({detail}). Make room and run again: finished stages and checkpoints are kept."
    return ""


def http_status(error: BaseException) -> int | None:
    """The HTTP status of an error, or None."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None


def is_network_error(error: BaseException) -> bool:
    """Whether an error of Python or of a library says that a connection failed."""
    kinds = type(error).__mro__
    return not any(kind.__name__ in _NO_NETWORK_ERRORS for kind in kinds) and any(
        kind.__name__ in _NETWORK_ERRORS.get(kind.__module__.partition(".")[0], ()) for kind in kinds
    )


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, ChildFailed):
        return error.transient
    if (status := http_status(error)) is not None:
        return status in TRANSIENT_STATUS
    return (isinstance(error, OSError) and error.errno in TRANSIENT_ERRNO) or is_network_error(error)
