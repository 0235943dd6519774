"""What the Hub refuses, said in one sentence; what passes by itself stays an error that is tried again."""

import contextlib
from collections.abc import Iterator

from tasks.errors import UserError
from tasks.text import hide_secrets

REFUSALS = {
    401: "is unknown to the Hub, or private: check the name, or set HF_TOKEN",
    403: "is not open to this account: ask for access on its page, and set HF_TOKEN",
    404: "is unknown to the Hub at that revision: check name and revision",
}


@contextlib.contextmanager
def refusals(field: str, name: str) -> Iterator[None]:
    """Turn a refusal into a UserError that names the field."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in REFUSALS:
            raise UserError(f"{field}: {name} {REFUSALS[status]}.") from error
        hide_secrets(error)
        raise
