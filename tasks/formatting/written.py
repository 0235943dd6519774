"""Which parts of a conversation a chat template writes: found by rendering it with a mark in every place."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from tasks.formatting.messages import Message

SILENT = {"role", "id", "tool_call_id", "message_id", "parent_id", "timestamp", "created_at", "finish_reason", "model"}
"""Fields of metadata, which no template needs to write."""
ID = "silent123"
"""Nine letters and digits, which Mistral's templates require."""
TAG = re.compile(r"</?\w+>|\[/?[A-Z_]+\]")
TEXT = re.compile(r"\S(?:.*\S)?", re.S)


class Unwritten(NamedTuple):
    """What a template leaves away, as numbers of messages from 0 (-1: a tool) with a description."""

    dropped: list[tuple[int, str]]
    forgotten: set[int]  # earlier answers of which a part is not written once other messages follow


class Marks:
    """A copy of a conversation with a mark in every place that has words; equal for conversations of one shape.

    Args:
        tags: what separates parts of a text that a template may take apart, such as thoughts.
    """

    def __init__(self, messages: list[Message], tools: list[Any], tags: re.Pattern[str] | None) -> None:
        self.places: list[tuple[str, int, str]] = []  # mark, message, description
        self.flags: list[tuple[int, str]] = []  # message, field that is true or false, which takes no mark
        self._names: dict[str, str] = {}
        self._tags = tags
        self.messages = [self._message(message, n) for n, message in enumerate(messages)]
        self.tools = [self._schema(tool, f"tool {n}") for n, tool in enumerate(tools, 1)]
        self.shape = json.dumps([self.messages, self.tools])

    def _mark(self, message: int, what: str) -> str:
        mark = f"zq{len(self.places)}qz"
        self.places.append((mark, message, what))
        return mark

    def _message(self, message: Message, n: int) -> Message:
        marked: Message = {}
        for name, value in message.items():
            where = f"message {n + 1} ({message['role']})"
            if name == "thinking" or name in SILENT or (name == "name" and message["role"] == "tool"):
                marked[name] = value if name == "role" else ID
            elif name == "tool_calls":
                marked[name] = [self._call(call, n, f"call {k} of {where}") for k, call in enumerate(value, 1)]
            else:
                self.flags += [(n, name)] if isinstance(value, bool) else []
                marked[name] = self._value(value, n, where if name == "content" else f"{name} of {where}")
        if "thinking" in message:  # another name of the same
            marked["thinking"] = marked["reasoning_content"]
        return marked

    def _call(self, call: dict[str, Any], n: int, what: str) -> dict[str, Any]:
        function = {name: self._value(item, n, what) for name, item in call["function"].items()}
        return {name: ID if name == "id" else value for name, value in call.items()} | {"function": function}

    def _value(self, value: Any, n: int, what: str) -> Any:
        if isinstance(value, str):
            parts = self._tags.split(value) if self._tags else [value]  # tags stand between the parts
            return "".join(
                part if k % 2 else TEXT.sub(lambda _: self._mark(n, what), part) for k, part in enumerate(parts)
            )
        if isinstance(value, dict):
            return {self._mark(n, what): self._value(item, n, what) for item in value.values()}
        if isinstance(value, list):
            return [self._value(item, n, what) for item in value]
        if isinstance(value, bool) or value is None:
            return value
        self.places.append((str(70_000_000 + len(self.places)), n, what))
        number = int(self.places[-1][0])
        return number if isinstance(value, int) else number + 0.5

    def _schema(self, value: Any, what: str, key: str = "") -> Any:
        """A tool: the names of its parameters and all that is said about them. JSON Schema's own words stay."""
        if isinstance(value, dict):
            if key != "properties":
                return {name: self._schema(item, what, name) for name, item in value.items()}
            return {self._name(name, what): self._schema(item, what) for name, item in value.items()}
        if isinstance(value, list):
            if key == "required":
                return [self._name(name, what) if isinstance(name, str) else name for name in value]
            return [self._schema(item, what, key) for item in value]
        if isinstance(value, str) and value.strip() and key not in ("type", "$ref", "format"):
            return self._mark(-1, what)
        return value

    def _name(self, name: str, what: str) -> str:
        if name not in self._names:
            self._names[name] = self._mark(-1, what)
        return self._names[name]


def unwritten(marks: Marks, render: Callable[[list[Message], list[Any]], str]) -> Unwritten:
    """Render a marked conversation, and see which marks are not there."""
    text = render(marks.messages, marks.tools)
    found = Unwritten([], set())
    alone: dict[int, str] = {}
    for mark, message, what in marks.places:
        if mark in text:
            continue
        if 0 <= message < len(marks.messages) - 1 and marks.messages[message]["role"] == "assistant":
            if message not in alone:
                alone[message] = render(marks.messages[: message + 1], marks.tools)
            if mark in alone[message]:
                found.forgotten.add(message)
                continue
        if (message, what) not in found.dropped:
            found.dropped.append((message, what))
    for n, name in marks.flags:
        message_n = marks.messages[n]
        other = [*marks.messages[:n], {**message_n, name: not message_n[name]}, *marks.messages[n + 1 :]]
        if render(other, marks.tools) == text:
            found.dropped.append((n, f"{name} of message {n + 1} ({message_n['role']})"))
    return found
