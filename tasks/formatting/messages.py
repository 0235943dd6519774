"""Converts conversations of all usual formats into the one that chat templates read: OpenAI's messages and tools."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from tasks.config import FormattingConfig
from tasks.download.formats.json_rows import UNIQUE
from tasks.formatting.flags import LEARN, MASKED, REFUSED, NotLearnt, learn

Message = dict[str, Any]
SYSTEM = ("system", "system_prompt")
"""Columns with a system prompt beside the conversation."""
TOOLS = ("tools", "functions")
"""Columns with the tools that the assistant may call."""
NAMES = {
    "system": ["system", "developer"],
    "user": ["user", "human", "prompter"],
    "assistant": ["assistant", "gpt", "model", "bot", "function_call", "tool_call"],
    "tool": ["tool", "function", "observation", "function_response", "tool_response", "ipython"],
}
ROLES = {name: role for role, names in NAMES.items() for name in names}
"""Who speaks → role of chat templates. Case and surrounding spaces make no difference."""
CALLERS = ("function_call", "tool_call")
"""Senders whose text is a call, or a list of calls, as JSON."""
CALL_ALONE = {"role", "content", "tool_calls"}
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Columns of what belongs to a conversation and is no text."""
REASONING = ("reasoning_content", "reasoning", "thinking")

SPEAKERS_OF = ("SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE", "Human|Assistant")
SPEAKER = [
    [re.compile(rf"(?:^|{between})({names}): *") for between in (r"\n\s*", r"\n[^\S\n]*\n\s*")] for names in SPEAKERS_OF
]
"""Of each kind of transcript: speakers on any line, and after an empty line."""
SPEAKERS = {"FUNCTION RESPONSE": "observation", "Human": "user"}
GLAIVE_CALL = re.compile(
    r'<functioncall>\s*\{\s*"name":\s*"([^"]+)"\s*(?:,\s*"arguments":\s*(\'?)(.*)\2\s*)?\}\s*$', re.DOTALL
)
GLAIVE_TOOLS = "with access to the following functions. Use them if required -"


class Conversation(NamedTuple):
    """The input of a chat template."""

    messages: list[Message]
    tools: list[dict[str, Any]]
    learnt: list[bool]  # of each message: an answer that says something, and that no flag excepts
    cut: int  # messages after the last answer to learn, which are not among them


def conversation(
    row: dict[str, Any], config: FormattingConfig, knows: Callable[[str], bool], refused: list[str]
) -> Conversation:
    """A row's messages and tools.

    Args:
        knows: whether the chat template names a role.
        refused: receives a sentence for each flag that cannot be obeyed, and for what a model of text cannot be given.
    Raises:
        ValueError: the row has no conversation; the text says why.
    """
    given = _turns(row.get(config.messages_column), "user" if config.answer_column else "")
    if config.answer_column:
        if _words(given[-1:], "role") == ["assistant"] and _words(given[-1:]) in ([""], [None]):  # "… Assistant:"
            given = given[:-1]
        answer = _turns(row.get(config.answer_column), "assistant")
        whole = len(answer) > len(given) > 0 and _words(answer[: len(given)]) == _words(given)
        if given and answer and not whole and _words(answer[:1], "role") == _words(given[-1:], "role") == ["user"]:
            raise ValueError(f"{config.answer_column} begins with another message of the user than the last one before")
        given = answer if whole else [*given, *answer]
    tools, systems = ([name for name in row if name.lower() in names and row[name]] for names in (TOOLS, SYSTEM))
    for columns in (tools, systems):
        if len(columns) > 1:
            raise ValueError(f"the columns {' and '.join(columns)} mean the same, and the row has both")
    written = _listed(row[tools[0]], f"the column {tools[0]}") if tools else []
    system = row[systems[0]] if systems else None
    if system is not None:
        if not isinstance(system, str):
            raise ValueError("the system column is no text")
        system, _, listed = system.removeprefix("SYSTEM: ").partition(GLAIVE_TOOLS)
        if listed:
            written, system = [*written, *_objects(listed)], system + GLAIVE_TOOLS.removesuffix(" -")
    if media := [name for name in row if name.lower() in MEDIA and row[name]]:
        refused.append(f"the row has {' and '.join(media)}, and the model is given text alone")
    messages: list[Message] = []
    flags: list[bool | None] = []
    calling = False  # the message before is a caller's
    for number, turn in enumerate(given, 1):
        message, calls = _message(turn, number, knows)
        flag = learn(message, f"message {number}", refused)
        if flag and message["role"] != "assistant":
            refused.append(f"message {number} is to be learnt, and only the assistant's messages are")
        for name in (LEARN | MASKED | REFUSED) & message.keys():
            del message[name]
        if calls and calling and not message["content"] and message.keys() <= CALL_ALONE:  # parallel calls
            messages[-1]["tool_calls"] += message["tool_calls"]
            flags[-1] = flag if flags[-1] is None else flags[-1] and flag is not False
        else:
            messages.append(message)
            flags.append(flag)
        calling = calls
    if system and system.strip():
        if not messages or messages[0]["role"] != "system":
            messages, flags = [{"role": "system", "content": system}, *messages], [None, *flags]
        elif messages[0]["content"].strip() != system.strip():
            raise ValueError("the system column and the conversation's own system message are not the same")
    learnt = [_says(message) and flag is not False for message, flag in zip(messages, flags, strict=True)]
    end = len(messages)
    if messages and messages[-1]["role"] == "assistant" and flags[-1] is False:
        if not any(learnt):
            raise NotLearnt("each of its answers has a flag that excepts it from learning")
        end -= learnt[::-1].index(True)
    listed_tools = [_tool(tool, number) for number, tool in enumerate(written, 1)]
    return Conversation(messages[:end], listed_tools, learnt[:end], len(messages) - end)


def _words(turns: list[Any], field: str = "content") -> list[Any]:
    """The contents, or the roles, of messages as they were given."""
    other = {"content": "value", "role": "from"}[field]
    said = [turn.get(field, turn.get(other)) if isinstance(turn, dict) else turn for turn in turns]
    return said if field == "content" else [_role(name) for name in said]


def _name(role: Any) -> str:
    return str(role).strip().lower()


def _role(role: Any) -> str:
    """The role of chat templates; another one as it is."""
    return ROLES.get(_name(role), _name(role))


def _says(message: Message) -> bool:
    return message["role"] == "assistant" and bool(message["content"].strip() or message.get("tool_calls"))


def _turns(value: Any, speaker: str) -> list[Any]:
    """Messages of a column: a list, one message, the JSON text of either, or a transcript.

    Args:
        speaker: whose words a text is that is none of these; empty: such a text is an error.
    """
    for any_line, empty_line in SPEAKER if isinstance(value, str) else ():
        found, apart = any_line.split(value.strip()), empty_line.split(value.strip())
        if found[0] or len(found) < 2:
            continue
        if len(found) > len(apart) > 3 and apart[-2].lower() == "assistant":
            raise ValueError("empty lines part its turns, and a line within a turn begins like one")
        said = zip(found[1::2], found[2::2], strict=True)
        return [_spoken(SPEAKERS.get(name, name.lower()), text.strip()) for name, text in said]
    if speaker and isinstance(value, str) and not value.lstrip().startswith(("[", "{")):
        return [{"role": speaker, "content": value}]
    if isinstance(value, dict):
        return [value]
    return _listed(value, "the conversation")


def _spoken(role: str, text: str) -> Message:
    """A turn of a transcript. Glaive's have calls in the text, with arguments in single quotes."""
    text = text.removesuffix("<|endoftext|>").strip()
    if not (call := GLAIVE_CALL.search(text)):
        return {"role": role, "content": text}
    function = {"name": call[1], "arguments": call[3]}
    return {"role": role, "content": text[: call.start()].strip(), "tool_calls": [{"function": function}]}


def _listed(value: Any, what: str) -> list[Any]:
    """A list, or the JSON text of one, as tables have it."""
    if isinstance(value, str) and value:
        value = _json(value, what)
    if not isinstance(value or [], list):
        raise ValueError(f"{what} is no list")
    return value or []


def _json(text: str, what: str) -> Any:
    try:
        return UNIQUE.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is text and no JSON: {error}") from error


def _objects(text: str) -> list[Any]:
    """Concatenated JSON objects."""
    found, text = [], text.strip()
    while text:
        value, end = UNIQUE.raw_decode(text)
        found.append(value)
        text = text[end:].strip()
    return found


def _message(message: Any, number: int, knows: Callable[[str], bool]) -> tuple[Message, bool]:
    """A message with role and content, and whether its sender is in CALLERS."""
    if not isinstance(message, dict):
        raise ValueError(f"message {number} is no object of role and content")
    message = {name: value for name, value in message.items() if value is not None}
    if (sender := message.pop("from", None)) is not None:
        if "value" not in message and "content" not in message:
            raise ValueError(f"message {number}, from {sender!r}, has no value")
        value = message.pop("value", message.get("content"))
        if _role(message.get("role", sender)) != _role(sender) or message.get("content", value) != value:
            raise ValueError(f"message {number} has from and role, or value and content, and they are not the same")
        message = {"role": sender, "content": value} | {n: item for n, item in message.items() if n != "role"}
    if "role" not in message:
        raise ValueError(f"message {number} has no role")
    name = _name(message["role"])
    role = name if knows(name) and ROLES.get(name, "system") == "system" else ROLES.get(name)
    if role is None:
        raise ValueError(f"message {number} is from {message['role']!r}, which is none of {', '.join(ROLES)}")
    calls = [] if name not in CALLERS or "content" not in message else message.pop("content")
    if isinstance(calls, str):
        calls = _json(calls, f"the call in message {number}")
    calls = calls if isinstance(calls, list) else [calls]
    caller = bool(calls)
    calls += _listed(message.pop("tool_calls", None), f"tool_calls of message {number}")
    calls += [message.pop("function_call")] if message.get("function_call") else []
    if calls:
        message["tool_calls"] = [_call(call, number) for call in calls]
    elif "content" not in message:
        raise ValueError(f"message {number} has no content")
    if thoughts := [thought for name in REASONING if (thought := message.pop(name, None))]:
        if not isinstance(thoughts[0], str) or any(thought != thoughts[0] for thought in thoughts):
            raise ValueError(f"the reasoning of message {number} is no text, or is there twice and not the same")
        message |= {"reasoning_content": thoughts[0], "thinking": thoughts[0]}  # the names that templates read
    return {**message, "role": role, "content": _text(message.get("content", ""), number, role)}, caller


def _text(content: Any, number: int, role: str) -> str:
    """Content as text: given as such, as OpenAI's list of parts that are text, or a tool's result as an object."""
    if role == "tool" and not isinstance(content, str) and not _are_parts(content):
        return json.dumps(content, ensure_ascii=False)
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part for part in parts]
    for wrong in (text for text in texts if not isinstance(text, str | int | float) or isinstance(text, bool)):
        kind = f" but {wrong['type']}" if isinstance(wrong, dict) and "type" in wrong else ""
        raise ValueError(f"the content of message {number} is no text{kind}")
    return "".join(map(str, texts))


def _are_parts(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)


def _call(call: Any, number: int) -> dict[str, Any]:
    """A call as OpenAI writes it, with its arguments as an object, which templates write as JSON themselves."""
    what = f"a call in message {number}"
    call = _json(call, what) if isinstance(call, str) else call
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{what} has no name")
    if function.get("arguments") and function.get("parameters"):
        raise ValueError(f"{what} has arguments and parameters")
    arguments = function.get("arguments") or function.get("parameters")
    if isinstance(arguments, str) and arguments.strip():
        arguments = _json(arguments, f"the argument text of {what}")
    if not isinstance(arguments or {}, dict):
        raise ValueError(f"the arguments of {what} are no object of names and values")
    outer = call if function is not call else {}
    inner = {name: value for name, value in function.items() if name not in ("arguments", "parameters", "id", "type")}
    ids = {"id": call["id"]} if call.get("id") else {}
    return {**ids, "type": "function", **outer, "function": {**inner, "arguments": arguments or {}}}


def _tool(tool: Any, number: int) -> dict[str, Any]:
    tool = _json(tool, f"tool {number}") if isinstance(tool, str) else tool
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
        return {"type": "function", **tool}
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        raise ValueError(f"tool {number} is no object with a name")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
