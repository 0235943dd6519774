"""The base class of the configuration's sections, and types of their fields."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema

from tasks.text import SECRET


class Section(BaseModel):
    """A group of fields. Unknown names and values of another type are refused; values are frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True, hide_input_in_errors=True)


def _without_credentials(value: str) -> str:
    if SECRET.search(value):
        raise ValueError(
            "it holds credentials, which the run would keep and show: leave them out, and put them into the "
            "environment of the process that runs the flow (docs/data.md, Credentials)"
        )
    return value


def _no_url(value: str) -> str:
    if "://" in _without_credentials(value):
        raise ValueError("it is a URL, and this field takes a name or a folder")
    return value


# The patterns are for the Prefect API, which validates the schema before it stores anything.
Where = Annotated[
    str,
    AfterValidator(_without_credentials),
    WithJsonSchema({"type": "string", "not": {"pattern": SECRET.pattern}}),
]
Name = Annotated[
    str,
    AfterValidator(_no_url),
    WithJsonSchema({"type": "string", "not": {"pattern": rf"{SECRET.pattern}|://"}}),
]
