"""A conversation through the model's own chat template: every answer in it is learnt, and nothing else."""

import json
import re
from pathlib import Path
from typing import Any

import jinja2

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting.formatted import Format, Formatted, plain
from tasks.formatting.templates import LONGEST_TEXT, Rendering, Runaway

Message = dict[str, Any]
TOOLS = "tools"
"""Column with what the assistant may call; chat templates write it."""
CONTROL = re.compile(r"<[|\uff5c].+[|\uff5c]>")
"""How control tokens look that are not marked as special, such as DeepSeek's."""

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


def _listed(value: Any, what: str) -> list[Any]:
    """A list, or the JSON text of one, as tables have it."""
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{what} is text and no JSON: {error}") from error
    if not isinstance(value or [], list):
        raise ValueError(f"{what} is no list")
    return plain(value or [])


def _message(message: Any, number: int) -> Message:
    """A message as chat templates take it; ShareGPT's `from` and `value` become role and content."""
    if not isinstance(message, dict):
        raise ValueError(f"message {number} is no object of role and content")
    if "from" in message:
        if message["from"] not in ROLES:
            raise ValueError(f"a message is from {message['from']!r}, which is none of {', '.join(ROLES)}")
        if "value" not in message:
            raise ValueError(f"a message from {message['from']!r} has no value")
        weight = {"weight": message["weight"]} if "weight" in message else {}
        message = {"role": ROLES[message["from"]], "content": message["value"], **weight}
    if "role" not in message:
        raise ValueError(f"message {number} has no role")
    if "content" not in message and not message.get("tool_calls"):
        raise ValueError(f"message {number} has no content")
    return {**message, "content": _text(message.get("content", ""), number)}


def _text(content: Any, number: int) -> str:
    """Content as text, or as OpenAI's list of parts that are text."""
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part for part in parts]
    for wrong in (text for text in texts if not isinstance(text, str | int | float)):
        kind = f" but {wrong['type']}" if isinstance(wrong, dict) and "type" in wrong else ""
        raise ValueError(f"the content of message {number} is no text{kind}")
    return "".join(map(str, texts))


def _learnable(message: Message) -> bool:
    """An answer that says something, and that OpenAI's `weight` does not except."""
    said = message["content"].strip() or message.get("tool_calls")
    return message["role"] == "assistant" and bool(said) and message.get("weight") != 0


def chat_format(folder: Path, config: FormattingConfig) -> Format:
    """How a row's messages become a prompt and its last answer.

    Args:
        folder: the base model's folder.
    Raises:
        UserError: the model has no chat template.
    """
    template = _Template(folder)

    def format_row(row: dict[str, Any]) -> Formatted:
        given = _listed(row[config.messages_column], "the conversation")
        messages = [_message(message, number) for number, message in enumerate(given, 1)]
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError("the conversation does not end with an assistant message")
        if messages[-1].get("weight") == 0:
            raise ValueError("the last answer has weight 0, and a conversation ends with an answer to learn")
        tools = _listed(row.get(TOOLS), "the tools column")
        template.refuse_tokens([*messages, {TOOLS: tools}])
        whole = template.render(messages, tools)
        start, end = template.place(messages, tools, whole)
        answer = messages[-1]["content"]
        if not answer.strip() and messages[-1].get("tool_calls"):
            answer = template.without_tokens(whole[start:end])
        answered = [n for n, message in enumerate(messages[:-1]) if _learnable(message)]
        try:
            learnt = [template.place(messages[: n + 1], tools, whole) for n in answered]
        except Runaway:
            raise
        except (ValueError, jinja2.TemplateError):
            why = "the chat template writes an earlier answer differently once other messages follow it"
            return Formatted(whole[:start], whole[start:end], answer, only_last=why)
        return Formatted(whole[:start], whole[start:end], answer, learnt)

    return format_row


def check_chat_template(folder: Path) -> None:
    """
    Raises:
        UserError: the tokenizer's files hold no chat template.
    """
    settings = folder / "tokenizer_config.json"
    named = settings.is_file() and json.loads(settings.read_text()).get("chat_template")
    if not named and not any(folder.glob("chat_template*")) and not (folder / "additional_chat_templates").is_dir():
        raise UserError(f"formatting.style: the model in {folder} has no chat template; use style: template.")


class _Template:
    """The tokenizer's chat template as text; it writes every special token itself."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        check_chat_template(folder)
        added = self._tokenizer.added_tokens_decoder.values()
        self._special = [token.content for token in added if token.special or CONTROL.fullmatch(token.content)]

    def render(self, messages: list[Message], tools: list[Any], answer_next: bool = False) -> str:
        with Rendering("the chat template"):
            text = str(
                self._tokenizer.apply_chat_template(
                    messages, tools=tools or None, tokenize=False, add_generation_prompt=answer_next
                )
            )
            if len(text) > LONGEST_TEXT:
                raise Runaway(f"the chat template makes more than {LONGEST_TEXT:,} characters of the row")
            return text

    def without_tokens(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, "")
        return text

    def refuse_tokens(self, messages: list[Message]) -> None:
        """Once rendered, a token's name in a message could not be told from the template's own tokens."""
        for value in (str(value) for message in messages for value in message.values()):
            if found := next((token for token in self._special if token in value), None):
                raise ValueError(f"a message contains {found}, which is a token of the model and no text")

    def place(self, messages: list[Message], tools: list[Any], whole: str) -> tuple[int, int]:
        """Where the last of some messages stands in the conversation they begin, in characters."""
        before = self.render(messages[:-1], tools, answer_next=True)
        after = self.render(messages, tools).rstrip()
        if not (whole.startswith(before) and whole.startswith(after)):
            raise ValueError("the chat template renders the answer differently from where it asks for it")
        return len(before), len(after)
