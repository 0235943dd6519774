"""Renders a conversation with the model's own chat template. Only its answers are learnt."""

import contextlib
import datetime
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting.formatted import Format, Formatted
from tasks.formatting.messages import Message, conversation
from tasks.formatting.templates import LONGEST_TEXT, Rendering, Runaway
from tasks.formatting.written import SILENT, TAG, Marks, Unwritten, unwritten
from tasks.text import answer_text

CONTROL = re.compile(r"<[|\uff5c].+[|\uff5c]>")
"""Pattern of control tokens that are not marked as special, such as DeepSeek's."""
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
REWRITES = "the chat template writes it differently once other messages follow"
MOST_SHAPES = 10_000
"""Largest number of conversation shapes in the cache."""

Span = tuple[int, int]


def chat_format(folder: Path, config: FormattingConfig) -> Format:
    """A function that renders a row's messages as a prompt and its last answer.

    Args:
        folder: the base model's folder.
    Raises:
        UserError: the model has no chat template.
    """
    template = _Template(folder, datetime.datetime.fromisoformat(config.date))

    def format_row(row: dict[str, Any]) -> Formatted:
        dropped: list[str] = []
        messages, tools, learnt, cut = conversation(row, config, template.names, dropped)
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError("the conversation does not end with an assistant message")
        template.refuse_tokens(messages, tools)
        messages = template.fitted(messages)
        whole, generated = template.written(messages, tools)
        lost = template.unwritten(messages, tools)
        dropped += [f"the chat template does not write {what}" for _, what in lost.dropped]
        dropped += template.altered(messages, whole, lost)
        if dropped and config.dropped == "refuse":
            more = f" (and {len(dropped) - 3} more)" if len(dropped) > 3 else ""
            raise ValueError(f"{'; '.join(dropped[:3])}{more}. formatting.dropped: allow takes such rows")
        for n, _ in lost.dropped:
            if n >= 0 and not messages[n]["content"].strip():
                learnt[n] = False  # nothing of it is there
        start, end = generated[-1] if generated else template.place(messages, len(messages) - 1, tools, whole)
        spans, costs = [], []
        for n in [n for n, wanted in enumerate(learnt[:-1]) if wanted]:
            try:
                if n in lost.forgotten:
                    raise ValueError("the chat template leaves a part of it away once other messages follow")
                which = sum(message["role"] == "assistant" for message in messages[:n])
                spans.append(generated[which] if generated else template.place(messages, n, tools, whole))
            except Runaway:
                raise
            except (ValueError, LookupError, jinja2.TemplateError) as error:
                costs.append(f"message {n + 1}: {error}")
        notes = [
            ("not written", "; ".join(dropped)),
            ("messages after the last answer to learn", f"{cut} left away" if cut else ""),
            ("earlier answer not learnt", "; ".join(costs)),
        ]
        said = template.without_tokens(whole[start:end]) if learnt[-1] else ""
        return Formatted(whole[:start], whole[start:end], said, spans, [note for note in notes if note[1]])

    return format_row


def _marked(value: Any) -> Any:
    """The same message with other words."""
    if isinstance(value, dict):
        return {name: item if name in SILENT | {"type"} else _marked(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_marked(item) for item in value]
    return "\ue0f1" if isinstance(value, str) and value.strip() else value


def _alike(text: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    pairs = zip(text, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(text), len(other)))


def _difference(text: str, other: str) -> Span:
    """The span in which a text differs from another one."""
    start = _alike(text, other)
    return start, len(text) - _alike(text[start:][::-1], other[start:][::-1])


def _with_texts(message: Message) -> Message:
    """A message whose calls have their arguments as JSON text."""
    functions = [call["function"] for call in message.get("tool_calls", ())]
    texts = [{**function, "arguments": json.dumps(function["arguments"])} for function in functions]
    calls = [{**call, "function": text} for call, text in zip(message.get("tool_calls", ()), texts, strict=True)]
    return {**message, "tool_calls": calls} if calls else message


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
    """The tokenizer's chat template as text; it writes every special token itself.

    Args:
        date: the date that the template gets for today.
    """

    def __init__(self, folder: Path, date: datetime.datetime) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        check_chat_template(folder)
        found = self._tokenizer.chat_template
        self._source = found if isinstance(found, str) else "\n".join(found.values())
        self._given = {**self._tokenizer.special_tokens_map, "documents": None, "strftime_now": date.strftime}
        added = self._tokenizer.added_tokens_decoder.values()
        self._special = [token.content for token in added if token.special]
        control = sorted({token.content for token in added if token.special or CONTROL.fullmatch(token.content)})
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")
        tags = sorted({*TAG.findall(self._source)}, key=len, reverse=True)
        self._tags = re.compile(f"({'|'.join(map(re.escape, tags))})") if tags else None
        self._texts = False  # whether it takes a call's arguments as JSON text
        self._shapes: dict[str, Unwritten] = {}

    def names(self, role: str) -> bool:
        """Whether the template has a branch for a role."""
        return f"'{role}'" in self._source or f'"{role}"' in self._source

    def fitted(self, messages: list[Message]) -> list[Message]:
        """Messages with call ids that Mistral's templates accept: nine letters and digits."""
        if not re.search(r"length\s*!=\s*9\b", self._source):
            return messages
        made: list[str] = []
        asked = iter(made)
        fitted = []
        for message in messages:
            if calls := message.get("tool_calls"):
                ids = [f"call{len(made) + k:05d}" for k in range(len(calls))]
                made += ids
                calls = [{**call, "id": id} for call, id in zip(calls, ids, strict=True)]
                message = {**message, "tool_calls": calls}
            elif message["role"] == "tool":
                message = {**message, "tool_call_id": next(asked, "call00000")}
            fitted.append(message)
        return fitted

    def render(self, messages: list[Message], tools: list[Any], answer_next: bool = False) -> str:
        return self._render(messages, tools, answer_next)[0]

    def _render(self, messages: list[Message], tools: list[Any], answer_next: bool = False) -> tuple[str, list[Span]]:
        """The text, and the spans that the template marks as generated."""
        from transformers.utils import chat_template_utils as utils

        source = self._tokenizer.get_chat_template(None, tools=tools or None)
        calls = [call["function"]["arguments"] for message in messages for call in message.get("tool_calls", ())]
        with Rendering("the chat template"):
            compiled = utils._compile_jinja_template(source)
            asked = [_with_texts(message) for message in messages] if self._texts else messages
            try:
                text, spans = utils._render_with_assistant_indices(
                    compiled, asked, tools or None, add_generation_prompt=answer_next, **self._given
                )
                as_they_are = not self._texts and any(given and str(given) in text for given in calls)
            except TypeError:  # it adds arguments to a text
                if self._texts or not calls:
                    raise
                as_they_are = True
            if as_they_are:
                self._texts = True
                return self._render(messages, tools, answer_next)
            if len(text) > LONGEST_TEXT:
                raise Runaway(f"the chat template makes more than {LONGEST_TEXT:,} characters of the row")
            return text, spans

    def written(self, messages: list[Message], tools: list[Any]) -> tuple[str, list[Span]]:
        """The rendered conversation, and the span of each answer if the template marks them.

        Raises:
            ValueError: it marks more or fewer parts than there are assistant messages.
        """
        whole, spans = self._render(messages, tools)
        if not GENERATION.search(self._source):
            return whole, []
        joined: list[Span] = []
        for start, end in spans:
            if joined and joined[-1][1] == start:
                start = joined.pop()[0]
            joined.append((start, end))
        answers = sum(message["role"] == "assistant" for message in messages)
        if len(joined) != answers:
            raise ValueError(f"the chat template marks {len(joined)} parts as generated, of {answers} answers")
        return whole, [(start, start + len(whole[start:end].rstrip())) for start, end in joined]

    def without_tokens(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, "")
        return answer_text(text)

    def refuse_tokens(self, messages: list[Message], tools: list[Any]) -> None:
        """Refuse token names in messages: after rendering they would look like the template's own tokens."""
        if found := self._control.search(str([messages, tools])):
            raise ValueError(f"a message contains {found[0]}, which is a token of the model and no text")

    def unwritten(self, messages: list[Message], tools: list[Any]) -> Unwritten:
        """The parts of a conversation of this shape that the template does not write."""
        marks = Marks(messages, tools, self._tags)
        if marks.shape not in self._shapes:
            if len(self._shapes) >= MOST_SHAPES:
                self._shapes.clear()
            self._shapes[marks.shape] = unwritten(marks, self.render)
        return self._shapes[marks.shape]

    def altered(self, messages: list[Message], whole: str, lost: Unwritten) -> Iterator[str]:
        """Messages of these words that the template leaves out, or writes in part, such as their first line."""
        left_out = lost.forgotten | {n for n, _ in lost.dropped}
        contents = {n: message["content"] for n, message in enumerate(messages) if n not in left_out}
        together = "\0".join(contents.values())  # which no text holds
        for n, content in contents.items():
            text, what = content.strip(), f"message {n + 1} ({messages[n]['role']})"
            as_json = (json.dumps(text, ensure_ascii=ascii)[1:-1] for ascii in (False, True))
            if whole.count(text) >= together.count(text) or any(
                written in whole for written in as_json if written != text
            ):
                continue
            if text in whole:  # as a part of another message
                yield f"the chat template does not write {what}"
                continue
            at = 0
            for word in (self._tags.sub(" ", text) if self._tags else text).split():
                if (at := whole.find(word, at)) < 0:
                    yield f"the chat template does not write all of {what}: {word[:40]!r} is missing"
                    break
                at += len(word)

    def _attempted(self, messages: list[Message], tools: list[Any], answer_next: bool = False) -> str | None:
        with contextlib.suppress(LookupError, jinja2.TemplateError):  # such as a system message alone
            return self.render(messages, tools, answer_next)
        return None

    def place(self, messages: list[Message], n: int, tools: list[Any], whole: str) -> Span:
        """The span of an answer in characters: from where the template asks for it to the end of what it writes then.

        Where that is no part of the whole text, its words are found by rendering others in their place.

        Raises:
            ValueError: the template writes it differently if other messages follow, or where it asks for the last one.
        """
        last = n == len(messages) - 1
        before = self._attempted(messages[:n], tools, answer_next=True)
        after = whole if last else self._attempted(messages[: n + 1], tools)
        if before is not None and after is not None and whole.startswith(before) and whole.startswith(after.rstrip()):
            return len(before), len(after.rstrip())
        if last and before is not None:
            raise ValueError("the chat template renders the answer differently from where it asks for it")
        marked = [*messages[:n], _marked(messages[n]), *messages[n + 1 :]]
        first, end = _difference(whole, self.render(marked, tools))
        start = first
        if before is not None and whole.startswith(before) and len(before) <= first:
            start = len(before)
        else:
            asking = self.render(messages, tools, answer_next=True)
            header = asking[_alike(asking, whole) :]
            if header and (found := whole.rfind(header, 0, first)) >= 0:
                start = found + len(header)
        nowhere = start == first and "tool_calls" in messages[n]
        if nowhere or first >= end or self._control.search(whole, start, first):
            raise ValueError(REWRITES)
        if after is None:
            return start, end
        _, alone = _difference(after, self.render(marked[: n + 1], tools))
        return start, end + len(whole[end : end + _alike(after[alone:], whole[end:])].rstrip())
