"""The base class of the configuration's sections, and types of their fields."""

import json
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, WithJsonSchema, field_validator

from tasks.text import SECRET

SEVERAL_LINES: Any = {"format": "json-string"}
"""Gives a text a box of several lines in the form of the Prefect UI, which checks nothing else by it."""
NO_TEXT = re.compile("[\0\ud800-\udfff]")
MOST = 1_000_000_000
"""Of rows or steps; larger numbers overflow in one library or another."""
TEN_YEARS = 5_256_000
"""In minutes; the system's timers do not take much more."""
_WRITTEN = {"dora": "DoRA", "hub": "Hub", "id": "ID", "lora": "LoRA", "neftune": "NEFTune", "rslora": "rsLoRA"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _title(field: str, _: object) -> str:
    """A field's name as words: LoRA alpha."""
    first, *others = field.split("_")
    return " ".join([_WRITTEN.get(first, first.capitalize()), *(_WRITTEN.get(word, word) for word in others)])


def _show_bounds(schema: dict[str, Any]) -> None:
    """Add bounds and default to the descriptions, which form and `--help` show."""
    for about in schema["properties"].values():
        said = [f"{sign} {_number(about[name])}" for name, sign in _BOUNDS.items() if name in about]
        default = about.get("default")
        if type(default) in (int, float):
            said.append(f"default {_number(default)}")
        elif default is False or (default and len(str(default)) < 100):
            said.append(f"default {json.dumps(default, ensure_ascii=False)}")
        if said:
            about["description"] += f" [{', '.join(said)}]"


def _number(value: float) -> str:
    """As people write it: 2e-4, 0.05, 1,048,576."""
    if 0 < abs(value) < 1e-3:
        digits, exponent = f"{value:e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


class Section(BaseModel):
    """A group of fields. Unknown names and values of another type are refused; values are frozen."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        strict=True,
        hide_input_in_errors=True,
        field_title_generator=_title,
        json_schema_extra=_show_bounds,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and NO_TEXT.search(text):
                raise ValueError("it holds NUL or half a character, which neither a file's name nor UTF-8 has")
        return value


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
