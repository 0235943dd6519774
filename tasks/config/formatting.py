"""How a row becomes text and tokens."""

import datetime
from typing import Literal

from pydantic import Field, field_validator

from tasks.config.section import SEVERAL_LINES, Section

ARTICLE_PROMPT = """
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruct: Summarize the below conversation.

{% if dialogue %}{{ dialogue }}

{% endif %}### Output:
"""


class FormattingConfig(Section):
    """How a row becomes a prompt and the answer to learn."""

    style: Literal["template", "chat", "text"] = Field(
        "template",
        description="template: the Jinja2 texts below. chat: the model's own chat template over a column of messages. "
        "text: a column of plain text, of which every token is learnt.",
    )
    prompt: str = Field(
        ARTICLE_PROMPT,
        description="Jinja2 template of the prompt (sandboxed); every column of the row is a variable, "
        "and `row` the row.",
        min_length=1,
        json_schema_extra=SEVERAL_LINES,
    )
    completion: str = Field(
        "{{ summary }}",
        description="Jinja2 template of the answer to learn.",
        min_length=1,
        json_schema_extra=SEVERAL_LINES,
    )
    ending: str = Field(
        "\n\n### End",
        description="Text learnt after the answer; a generated answer is cut where it begins.",
        json_schema_extra=SEVERAL_LINES,
    )
    input_column: str = Field(
        "dialogue",
        description="Column whose text may be shortened when a row is too long; instruction and answer stay whole.",
    )
    references: list[str] = Field(
        [],
        description="Columns with human answers to score against (text, or lists of texts); the best one counts. "
        "Empty: the completion.",
    )
    messages_column: str = Field(
        "messages",
        description="Column with the conversation (style: chat): a list of role and content, or of ShareGPT's from and "
        "value; also as JSON text.",
        min_length=1,
    )
    answer_column: str = Field(
        "",
        description="Column with the answer to learn (style: chat), where `messages_column` has only what comes before "
        "it, such as `chosen` of preference rows: text, a message, or a list of messages.",
    )
    text_column: str = Field("text", description="Column with the text (style: text).", min_length=1)
    date: str = Field(
        "2025-01-01",
        description="What a chat template is told when it asks for today's date, as year-month-day.",
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
    )
    dropped: Literal["refuse", "allow"] = Field(
        "refuse",
        description="A row of which the chat template does not write every message, call, tool and thought, or that "
        "has a flag of another trainer that cannot be obeyed. refuse: it is lost, with the reason. allow: it is learnt "
        "without that, and listed in the ledger.",
    )

    @field_validator("date")
    @classmethod
    def _a_day(cls, date: str) -> str:
        datetime.date.fromisoformat(date)
        return date


class TokenizationConfig(Section):
    """How prompts become token ids and what happens to a row that is too long."""

    max_length: int = Field(
        2048, description="Longest row in tokens; the model's own limit applies when it is lower.", ge=16, le=1_048_576
    )
    too_long: Literal["truncate_prompt", "truncate_completion", "drop"] = Field(
        "truncate_prompt",
        description="truncate_prompt: shorten the input column, keep the rest whole. truncate_completion: cut the "
        "answer's end, the prompt stays whole. drop: leave the row out. Every such row is listed in the ledger.",
    )
    cut: Literal["middle", "left", "right"] = Field(
        "middle", description="Which part of the input column truncate_prompt removes."
    )
