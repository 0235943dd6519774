"""Which failures are tried again."""

import errno
from types import SimpleNamespace

import httpx
import pytest

from tasks.child import ChildFailed
from tasks.errors import UserError
from tasks.failures import passes_by_itself


class HubError(Exception):
    def __init__(self, status: int) -> None:
        self.response = SimpleNamespace(status_code=status)


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
        (OSError(errno.EBUSY, "busy"), True),
        (OSError(errno.ENOSPC, "full"), False),
        (TimeoutError("a stage ran longer than it may"), False),
        (FileNotFoundError(errno.ENOENT, "gone"), False),
        (ChildFailed("killed", passing=True), True),
        (ChildFailed("broken", passing=False), False),
        (UserError("wrong"), False),
        (ValueError("wrong"), False),
        (caused(RuntimeError("wrapped"), HubError(503)), True),
        (caused(UserError("wrapped"), HubError(503)), False),
    ],
    ids=repr,
)
def test_a_failure_is_tried_again_when_it_passes_by_itself(error: Exception, again: bool) -> None:
    assert passes_by_itself(error) is again
