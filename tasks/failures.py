"""Which failures pass by themselves: those are tried again, all others are shown at once."""

import errno
from collections.abc import Iterator

from tasks.child import ChildFailed
from tasks.errors import UserError

PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
PASSING_ERRNO = {
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
}
NETWORK_ERRORS = {
    "ConnectError",
    "ReadError",
    "RemoteProtocolError",
    "ConnectTimeout",
    "ReadTimeout",
    "ConnectionError",
}
"""Class names of httpx and requests, so that neither is imported here."""


def passes_by_itself(error: BaseException) -> bool:
    """Whether another attempt can succeed without anybody changing anything."""
    chain = list(causes(error))
    if any(isinstance(e, UserError) for e in chain):
        return False
    return any(_passes(e) for e in chain)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__


def _passes(error: BaseException) -> bool:
    if isinstance(error, ChildFailed):
        return error.passing
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in PASSING_STATUS
    if isinstance(error, OSError) and error.errno in PASSING_ERRNO:
        return True
    return type(error).__name__ in NETWORK_ERRORS
