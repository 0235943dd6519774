"""Errors of the Hub as one sentence for the user. Transient errors stay errors, which are retried."""

import contextlib
from collections.abc import Iterator

from tasks.errors import UserError
from tasks.process.failures import causes, is_network_error
from tasks.text import hide_secrets, public_url, visible

REFUSALS = {
    401: "is unknown to the Hub, or private: check the name, or set HF_TOKEN",
    403: "is not open to this account: ask for access on its page, and set HF_TOKEN",
    404: "is unknown to the Hub at that revision: check name and revision",
}


@contextlib.contextmanager
def refusals(field: str, name: str) -> Iterator[None]:
    """Turn what the Hub refuses into one sentence.

    Raises:
        UserError: it is refused, or it is not in the cache and HF_HUB_OFFLINE is set.
        ConnectionError: the network failed, which is transient.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.HfHubHTTPError):
            hide_secrets(error)
            if status in REFUSALS:
                raise UserError(f"{field}: {name} {REFUSALS[status]}.") from error
        missing = isinstance(error, errors.LocalEntryNotFoundError | errors.RevisionResolutionError)
        if missing and constants.is_offline_mode():
            raise UserError(
                f"{field}: {name} at this revision is not in the Hub's cache {constants.HF_HUB_CACHE}, and "
                "HF_HUB_OFFLINE forbids asking for it."
            ) from error
        if any(map(is_network_error, causes(error))):
            host = public_url(constants.ENDPOINT)
            raise ConnectionError(f"{field}: {name} cannot be asked for at {host}: {visible(error)}") from error
        raise
