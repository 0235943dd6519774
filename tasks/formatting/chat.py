"""A conversation through the model's own chat template: every answer in it is learnt, and nothing else."""

from pathlib import Path
from typing import Any

import jinja2

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting.formatted import Format, Formatted

Message = dict[str, Any]

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",  # what today's chat templates call it
}
"""Who speaks in ShareGPT's `from` → role. A name outside it would go into the prompt as a role of its own."""


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """A message as chat templates take it; ShareGPT's `from` and `value` become role and content."""
    if message.get("from") is None:  # Parquet gives every message all names, when rows of both kinds are mixed
        return {name: value for name, value in message.items() if value is not None}
    if message["from"] not in ROLES:
        raise ValueError(f"a message is from {message['from']!r}, which is none of {', '.join(ROLES)}")
    if message.get("value") is None:
        raise ValueError(f"a message from {message['from']!r} has no value")
    return {"role": ROLES[message["from"]], "content": message["value"]}


def chat_format(folder: Path, config: FormattingConfig, columns: set[str]) -> Format:
    """How a row's messages become a prompt and its last answer.

    Args:
        folder: the base model's folder.
        columns: what the rows have.
    Raises:
        UserError: there is no such column, or the model has no chat template.
    """
    if config.messages_column not in columns:
        raise UserError(
            f"formatting.messages_column: no column is called {config.messages_column}; "
            f"the data has {', '.join(sorted(columns))}."
        )
    template = _Template(folder)

    def format_row(row: dict[str, Any]) -> Formatted:
        messages = [_message(message) for message in row[config.messages_column] or ()]
        if not messages or messages[-1].get("role") != "assistant":
            raise ValueError("the conversation does not end with an assistant message")
        template.refuse_tokens(messages)
        whole = template.render(messages)
        answer = str(messages[-1]["content"])
        start, end = template.place(messages, whole)
        answered = [n for n, message in enumerate(messages[:-1]) if message["role"] == "assistant"]
        try:
            learnt = [template.place(messages[: n + 1], whole) for n in answered]
        except (ValueError, jinja2.TemplateError):
            why = "the chat template writes an earlier answer differently once other messages follow it"
            return Formatted(whole[:start], whole[start:end], answer, only_last=why)
        return Formatted(whole[:start], whole[start:end], answer, learnt)

    return format_row


class _Template:
    """The tokenizer's chat template as text; it writes every special token itself."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        if not self._tokenizer.chat_template:
            raise UserError(f"formatting.style: the model in {folder} has no chat template; use style: template.")
        self._special = list(self._tokenizer.get_added_vocab())

    def render(self, messages: list[Message], answer_next: bool = False) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next))

    def refuse_tokens(self, messages: list[Message]) -> None:
        """Once rendered, a token's name in a message could not be told from the template's own tokens."""
        for value in (str(value) for message in messages for value in message.values()):
            if found := next((token for token in self._special if token in value), None):
                raise ValueError(f"a message contains {found}, which is a token of the model and no text")

    def place(self, messages: list[Message], whole: str) -> tuple[int, int]:
        """Where the last of some messages stands in the conversation they begin, in characters."""
        before, after = self.render(messages[:-1], answer_next=True), self.render(messages).rstrip()
        if not (whole.startswith(before) and whole.startswith(after)):
            raise ValueError("the chat template renders the answer differently from where it asks for it")
        return len(before), len(after)
